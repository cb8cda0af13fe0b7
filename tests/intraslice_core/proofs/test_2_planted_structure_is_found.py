"""Proof 2: a model with planted low-rank structure shrinks to it without loss."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.evaluation.perplexity import evaluation_tokens
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_model, tiny_tokenizer

# A quarter off: 16 → 12 in heads and values, 64 → 48 in neurons.
KEPT_PAIRS, KEPT_VALUES, KEPT_NEURONS = 6, 12, 48


def plant(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Confine values to a subspace, zero rotary pairs, double neurons: another one per layer."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            basis = torch.linalg.qr(torch.randn(2, 16, KEPT_VALUES, generator=generator)).Q
            values = attention.v_proj.weight.view(2, 16, -1)
            values.copy_(basis @ basis.mT @ values)
            keys = attention.k_proj.weight.view(2, 16, -1)
            for head in range(2):
                gone = torch.randperm(8, generator=generator)[: 8 - KEPT_PAIRS]
                keys[head, gone] = 0
                keys[head, gone + 8] = 0
            order = torch.randperm(64, generator=generator)
            copies, originals = order[KEPT_NEURONS:], order[: 64 - KEPT_NEURONS]
            for projection in (mlp.gate_proj, mlp.up_proj):
                projection.weight[copies] = projection.weight[originals]
    return model


def test_planted_model_loses_nothing_on_held_out_text(tmp_path: Path) -> None:
    model = plant(tiny_model(initializer_range=0.15))
    dense = save_checkpoint(model, tmp_path / "dense")
    config = CompressionConfig(
        ratio=0.25,
        round_to=4,
        calibration=CalibrationConfig(source="pydoc", samples=256, sequence_length=64),
    )
    report = compress_model(str(dense), tmp_path / "out", config)
    for layer in report.plan.layers:
        assert (layer.qk_pairs, layer.v_head_dim, layer.intermediate_size) == (
            KEPT_PAIRS,
            KEPT_VALUES,
            KEPT_NEURONS,
        )
    sliced = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = evaluation_tokens("pydoc", tiny_tokenizer(), 8 * 64).view(8, 64)
    with torch.no_grad():
        assert (sliced(tokens).logits - model(tokens).logits).abs().max() <= 1e-3
