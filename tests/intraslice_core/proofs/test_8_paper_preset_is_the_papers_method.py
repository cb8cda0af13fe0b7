"""Proof 8: method `intraslice` does what docs/method.md says, by an independent oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice_core.calibration import calibration_tokens
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.layer_compressor import LayerCompressor, LayerOutcome
from intraslice_core.methods import METHODS
from intraslice_core.plan import LayerPlan
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.proofs import paper_oracle as oracle
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_family_model, tiny_tokenizer

CPU = torch.device("cpu")
VARIANTS = ["llama", "phi", "phi_grouped", "phi3"]
"""Grouped queries; biases, parallel blocks and heads that rotate partly; fused projections."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 2e-5}
"""RMSNorm and rotary tables are taken in float32 in any case, as the model classes do."""


def drawn_tokens(sequences: int = 8, length: int = 20) -> Tensor:
    return torch.randint(3, 250, (sequences, length), generator=torch.Generator().manual_seed(1))


def plan_of(layers: DenseLayerReader, layer: int) -> LayerPlan:
    """Other sizes in every layer."""
    settings = layers.settings(layer)
    return LayerPlan(
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        qk_pairs=settings.head_dim // 2 - 1 - layer,
        v_head_dim=settings.head_dim - 3 - 2 * layer,
        intermediate_size=50 - 7 * layer,
    )


def compress_one(layers: DenseLayerReader, layer: int, streams: HiddenStates, dtype: torch.dtype):
    context = LayerContext(
        layer=layer,
        settings=layers.settings(layer),
        rotary=layers.rotary(layer, streams.compressed.shape[1]),
        method=METHODS["intraslice"],
        batch_size=3,
        device=CPU,
        stored_dtype=dtype,
        before_batch=lambda done: None,
    )
    return LayerCompressor(layers.weights(layer), plan_of(layers, layer), streams, context).run()


def full_size_bases(dense: LayerWeights, sliced: LayerWeights) -> Tensor:
    """`B` of every KV head, from `Wv B`: (num_key_value_heads, head_dim, v_head_dim)."""
    groups = dense.num_key_value_heads
    wide = dense.value.weight.double().view(groups, -1, dense.value.weight.shape[1])
    thin = sliced.value.weight.double().view(groups, -1, wide.shape[-1])
    return (thin @ torch.linalg.pinv(wide)).mT


def require_same(
    found: LayerOutcome, dense: LayerWeights, wanted: oracle.Compressed, atol: float
) -> None:
    """Choices and refitted weights, ours brought to full size."""
    sliced = found.weights

    def close(mine: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(mine.double(), theirs, rtol=atol, atol=atol)

    assert found.kept_pairs.tolist() == wanted.kept_pairs
    bases = full_size_bases(dense, sliced)
    close(bases @ bases.mT, torch.stack(wanted.projectors))
    group = dense.num_attention_heads // dense.num_key_value_heads
    wide = torch.block_diag(*bases.repeat_interleave(group, 0))
    close(wide @ sliced.attention_output.weight.double().mT, wanted.attention_output.weight)
    kept = wanted.kept_neurons
    assert torch.equal(sliced.up.weight, dense.up.weight[kept])
    if dense.gate is not None:
        assert torch.equal(sliced.gate.weight, dense.gate.weight[kept])
    rows = torch.zeros_like(wanted.mlp_output.weight)
    rows[kept] = sliced.mlp_output.weight.double().mT
    close(rows, wanted.mlp_output.weight)
    for mine, theirs in (
        (sliced.attention_output, wanted.attention_output),
        (sliced.mlp_output, wanted.mlp_output),
    ):
        assert (mine.bias is None) == (theirs.bias is None)
        if mine.bias is not None:
            close(mine.bias, theirs.bias)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_module_of_every_layer_is_the_oracles(
    tmp_path: Path, variant: str, dtype: torch.dtype
) -> None:
    model = tiny_family_model(variant)
    directory = save_checkpoint(model, tmp_path / "dense")
    tokens, atol = drawn_tokens(), TOLERANCE[dtype]
    with CheckpointReader(directory) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, CPU, dtype)
        streams = HiddenStates(compressed=layers.embed(tokens), dense=None)
        theirs = [model.get_input_embeddings().weight[one].double() for one in tokens]
        for layer in range(layers.num_layers):
            plan = plan_of(layers, layer)
            found = compress_one(layers, layer, streams, dtype)
            sizes = oracle.Sizes(plan.qk_pairs, plan.v_head_dim, plan.intermediate_size)
            wanted, theirs = oracle.compress(oracle.Layer(model, layer), sizes, theirs)
            require_same(found, layers.weights(layer), wanted, atol)
            torch.testing.assert_close(
                streams.compressed.double(), torch.stack(theirs), rtol=0, atol=atol
            )


@pytest.mark.parametrize("variant", ["llama", "phi_grouped", "phi3"])
def test_checkpoint_predicts_what_the_oracles_full_size_model_predicts(
    tmp_path: Path, variant: str
) -> None:
    """The whole engine, from calibration text to the classes that load the result."""
    model = tiny_family_model(variant)
    dense = save_checkpoint(model, tmp_path / "dense")
    calibration = CalibrationConfig(source="pydoc", samples=8, sequence_length=20)
    config = CompressionConfig(
        ratio=0.3,
        method="intraslice",
        allocation="uniform",
        round_to=2,
        dtype="float32",
        calibration=calibration,
    )
    report = compress_unverified(dense, tmp_path / "out", config)
    tokens = calibration_tokens(calibration, tiny_tokenizer())
    with torch.no_grad():
        streams = [model.get_input_embeddings().weight[one].double() for one in tokens]
        for number, plan in enumerate(report.plan.layers):
            sizes = oracle.Sizes(plan.qk_pairs, plan.v_head_dim, plan.intermediate_size)
            _, streams = oracle.compress(oracle.Layer(model, number), sizes, streams)
        sliced = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        found = sliced.eval()(tokens, use_cache=False).logits
        torch.testing.assert_close(found, predicted(model, streams), rtol=0, atol=1e-4)


def predicted(model: PreTrainedModel, streams: oracle.Sequences) -> Tensor:
    """Final norm and head, by the dense model's own classes."""
    norm = getattr(model.model, "norm", None) or model.model.final_layernorm
    return model.lm_head(norm(torch.stack(streams).float()))
