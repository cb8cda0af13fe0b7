"""Proof 8: method `intraslice` equals an independent implementation of arXiv 2602.01975."""

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
from tests.intraslice_core.proofs import oracle
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_family_model, tiny_tokenizer

CPU = torch.device("cpu")
VARIANTS = ["llama", "phi", "phi_grouped", "phi3"]
"""Grouped queries; biases, parallel layers and partly rotating heads; fused projections."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 2e-5}
"""Tolerance by compute dtype; RMSNorm and RoPE tables are always float32, as in model classes."""


def drawn_tokens(sequences: int = 8, length: int = 20) -> Tensor:
    return torch.randint(3, 250, (sequences, length), generator=torch.Generator().manual_seed(1))


def plan_of(layers: DenseLayerReader, layer: int) -> LayerPlan:
    """Return a plan with different sizes in every layer."""
    settings = layers.settings(layer)
    return LayerPlan(
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        qk_pairs=settings.head_dim // 2 - 1 - layer,
        v_head_dim=settings.head_dim - 3 - 2 * layer,
        intermediate_size=50 - 7 * layer,
    )


def compress_one(layers: DenseLayerReader, layer: int, states: HiddenStates, dtype: torch.dtype):
    context = LayerContext(
        layer=layer,
        settings=layers.settings(layer),
        rotary=layers.rotary(layer, states.compressed.shape[1]),
        method=METHODS["intraslice"],
        batch_size=3,
        device=CPU,
        stored_dtype=dtype,
        before_batch=lambda done: None,
    )
    return LayerCompressor(layers.weights(layer), plan_of(layers, layer), states, context).run()


def full_size_bases(dense: LayerWeights, sliced: LayerWeights) -> Tensor:
    """Return `B` of every KV head from `Wv B`, (num_key_value_heads, head_dim, v_head_dim)."""
    groups = dense.num_key_value_heads
    wide = dense.value.weight.double().view(groups, -1, dense.value.weight.shape[1])
    thin = sliced.value.weight.double().view(groups, -1, wide.shape[-1])
    return (thin @ torch.linalg.pinv(wide)).mT


def require_same(
    outcome: LayerOutcome, dense: LayerWeights, expected: oracle.Compressed, atol: float
) -> None:
    """Compare selections and refitted weights, the engine's expanded to full size."""
    sliced = outcome.weights

    def close(weight: Tensor, reference: Tensor) -> None:
        torch.testing.assert_close(weight.double(), reference, rtol=atol, atol=atol)

    assert outcome.kept_pairs.tolist() == expected.kept_pairs
    bases = full_size_bases(dense, sliced)
    close(bases @ bases.mT, torch.stack(expected.projectors))
    group = dense.num_attention_heads // dense.num_key_value_heads
    wide = torch.block_diag(*bases.repeat_interleave(group, 0))
    close(wide @ sliced.attention_output.weight.double().mT, expected.attention_output.weight)
    neurons = expected.kept_neurons
    assert torch.equal(sliced.up.weight, dense.up.weight[neurons])
    if dense.gate is not None:
        assert torch.equal(sliced.gate.weight, dense.gate.weight[neurons])
    rows = torch.zeros_like(expected.mlp_output.weight)
    rows[neurons] = sliced.mlp_output.weight.double().mT
    close(rows, expected.mlp_output.weight)
    for projection, reference in (
        (sliced.attention_output, expected.attention_output),
        (sliced.mlp_output, expected.mlp_output),
    ):
        assert (projection.bias is None) == (reference.bias is None)
        if projection.bias is not None:
            close(projection.bias, reference.bias)


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
        states = HiddenStates(compressed=layers.embed(tokens), dense=None)
        embeddings = model.get_input_embeddings().weight
        expected_states = [embeddings[sequence].double() for sequence in tokens]
        for layer in range(layers.num_layers):
            plan = plan_of(layers, layer)
            outcome = compress_one(layers, layer, states, dtype)
            sizes = oracle.Sizes(plan.qk_pairs, plan.v_head_dim, plan.intermediate_size)
            expected, expected_states = oracle.compress(
                oracle.Layer(model, layer), sizes, expected_states
            )
            require_same(outcome, layers.weights(layer), expected, atol)
            torch.testing.assert_close(
                states.compressed.double(), torch.stack(expected_states), rtol=0, atol=atol
            )


@pytest.mark.parametrize("variant", ["llama", "phi_grouped", "phi3"])
def test_checkpoint_has_the_logits_of_the_oracles_full_size_model(
    tmp_path: Path, variant: str
) -> None:
    """This runs the whole engine, from calibration text to the classes that load the result."""
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
        embeddings = model.get_input_embeddings().weight
        states = [embeddings[sequence].double() for sequence in tokens]
        for number, plan in enumerate(report.plan.layers):
            sizes = oracle.Sizes(plan.qk_pairs, plan.v_head_dim, plan.intermediate_size)
            _, states = oracle.compress(oracle.Layer(model, number), sizes, states)
        sliced = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        logits = sliced.eval()(tokens, use_cache=False).logits
        torch.testing.assert_close(logits, expected_logits(model, states), rtol=0, atol=1e-4)


def expected_logits(model: PreTrainedModel, states: oracle.Sequences) -> Tensor:
    """Apply the final norm and head of the dense model's own classes."""
    norm = getattr(model.model, "norm", None) or model.model.final_layernorm
    return model.lm_head(norm(torch.stack(states).float()))
