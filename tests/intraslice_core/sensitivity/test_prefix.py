"""Selection keeps the neurons and pairs that serve an attention sink at the BOS token."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from intraslice_core.allocation.estimators import CalibrationSplit, measure_sensitivity
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.sensitivity.measurement import ModelSensitivity
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_model

SINK_NEURON, SINK_DIMENSION = 5, 3


def with_sink(factor: float) -> LlamaForCausalLM:
    """Return a model in which one neuron of layer 0 sees BOS only and makes its state long.

    BOS alone has a component in one dimension of the embedding. The neuron reads this dimension and
    writes `factor` into the residual stream.
    """
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, SINK_DIMENSION] = 0.0
        embedding[0, SINK_DIMENSION] = 20.0 * embedding.std()
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight[SINK_DIMENSION] = 0.0
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight[SINK_NEURON] = 0.0
            projection.weight[SINK_NEURON, SINK_DIMENSION] = 1.0
        layer.mlp.down_proj.weight[:, SINK_NEURON] *= factor
    return model


def measured(directory: Path, prefix_length: int) -> ModelSensitivity:
    tokens = torch.randint(3, 250, (10, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    with CheckpointReader(directory) as reader, torch.inference_mode():
        return measure_sensitivity(
            DenseLayerReader(reader, torch.device("cpu"), torch.float32),
            CalibrationSplit.of(tokens, prefix_length=prefix_length),
            batch_size=4,
            before_batch=lambda _: None,
        )


def test_the_neuron_that_makes_the_state_of_bos_long_is_among_the_last_to_go(tmp_path):
    directory = save_checkpoint(with_sink(300.0), tmp_path / "sink")
    order = measured(directory, 1).layers[0].neuron_order
    assert SINK_NEURON in order[-len(order) // 8 :]


def test_predicted_losses_do_not_grow_with_the_length_of_the_state_of_bos(tmp_path):
    """Every later norm divides by that length, so that it changes no loss by itself."""
    losses = []
    for factor in (300.0, 3000.0):
        directory = save_checkpoint(with_sink(factor), tmp_path / f"{factor:g}")
        losses.append(
            {
                prefix_length: measured(directory, prefix_length).layers[0].width_losses[0]
                for prefix_length in (0, 1)
            }
        )
    assert losses[1][1] < 1.2 * losses[0][1]
    assert losses[1][0] > 20.0 * losses[0][0]
