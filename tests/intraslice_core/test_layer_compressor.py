"""Compression of a layer whose plan removes whole modules, and of parallel layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core import hidden_states as hidden_states_module
from intraslice_core.config import Method
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Rotary
from intraslice_core.families.adapter import family_for
from intraslice_core.families.canonical import layer_settings, layer_weights, rotary_tables
from intraslice_core.hidden_states import HiddenStates, LayerContext, LayerPass
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core.methods import METHODS
from intraslice_core.plan import LayerPlan
from tests.intraslice_core.tiny_models import tiny_family_model

CPU = torch.device("cpu")
SAMPLES, SEQUENCE = 12, 24


def opened(variant: str) -> tuple[LayerWeights, LayerSettings, Rotary, LayerPlan]:
    model = tiny_family_model(variant)
    family, prefix = family_for(model.config), "model.layers.0."
    stored = {n.removeprefix(prefix): t for n, t in model.state_dict().items() if prefix in n}
    canonical = family.canonical_settings(model.config)
    tensors = family.canonical_layer(model.config, 0, stored)
    return (
        layer_weights(tensors, canonical["num_key_value_heads"], CPU, torch.float32),
        layer_settings(canonical, 0),
        rotary_tables(canonical, 0, SEQUENCE, CPU),
        family.geometry(model.config).dense_layer(),
    )


def hidden_states(seed: int = 0) -> HiddenStates:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(SAMPLES, SEQUENCE, 48, generator=generator)
    return HiddenStates(compressed=hidden, dense=hidden.clone())


@pytest.mark.parametrize("removed", ["attention", "mlp", "both"])
@pytest.mark.parametrize("variant", ["qwen3", "phi", "gemma3"])
@pytest.mark.parametrize("method", ["intraslice_plus", "magnitude"])
def test_compressed_states_pass_the_sliced_layer_and_dense_states_the_dense_one(
    variant: str, removed: str, method: Method
) -> None:
    weights, settings, rotary, plan = opened(variant)
    if removed != "mlp":
        plan = replace_plan(plan, num_attention_heads=0, num_key_value_heads=0)
    if removed != "attention":
        plan = replace_plan(plan, intermediate_size=0)
    states, start = hidden_states(), hidden_states()
    context = LayerContext(
        layer=0,
        settings=settings,
        rotary=rotary,
        method=replace(METHODS[method], dense_target=method == "intraslice_plus"),
        batch_size=5,
        device=CPU,
        stored_dtype=torch.float32,
        before_batch=lambda done: None,
    )
    with torch.no_grad():
        outcome = LayerCompressor(weights, plan, states, context).run()
        assert outcome.weights.has_attention == (removed == "mlp")
        assert outcome.weights.has_mlp == (removed == "attention")
        if method == "magnitude":
            return

        def forward(hidden: Tensor, layer: LayerWeights) -> Tensor:
            return decoder_layer.forward(hidden, layer, settings, rotary)

        assert states.dense is not None
        torch.testing.assert_close(states.compressed, forward(start.compressed, outcome.weights))
        torch.testing.assert_close(states.dense, forward(start.compressed, weights))
        replayed = hidden_states()
        LayerCompressor(weights, plan, replayed, context).replay(outcome.weights)
        assert torch.equal(replayed.compressed, states.compressed)
        assert torch.equal(replayed.dense, states.dense)


def replace_plan(plan: LayerPlan, **sizes: int) -> LayerPlan:
    return plan.model_copy(update=sizes)


def test_the_mlp_of_a_parallel_layer_compensates_for_its_attention() -> None:
    """Its target is the difference of the dense states and the sliced attention, not its output."""
    weights, settings, rotary, plan = opened("phi")
    cut = replace_plan(plan, v_head_dim=2)
    context = LayerContext(
        layer=0,
        settings=settings,
        rotary=rotary,
        method=replace(METHODS["intraslice_plus"], damping_correction=(1e-3,)),
        batch_size=4,
        device=CPU,
        stored_dtype=torch.float32,
        before_batch=lambda done: None,
    )
    with torch.no_grad():
        states, start = hidden_states(), hidden_states()
        sliced = LayerCompressor(weights, cut, states, context).run().weights
        assert states.dense is not None
        error = (states.compressed - states.dense).square().sum()
        dense_mlp = replace(sliced, up=weights.up, mlp_output=weights.mlp_output)
        uncompensated = decoder_layer.forward(start.compressed, dense_mlp, settings, rotary)
        assert error < 0.9 * (uncompensated - states.dense).square().sum()


def context_of(settings: LayerSettings, rotary: Rotary, *, batch_size: int) -> LayerContext:
    """Return the context of a compression with a single damping."""
    return LayerContext(
        layer=0,
        settings=settings,
        rotary=rotary,
        method=replace(METHODS["intraslice_plus"], damping_own=(0.1,)),
        batch_size=batch_size,
        device=CPU,
        stored_dtype=torch.float32,
        before_batch=lambda done: None,
    )


def test_inner_activations_that_were_not_kept_are_computed_again_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keep none, one or all of three batches of 4 sequences until the refit."""
    weights, settings, rotary, plan = opened("qwen3")
    cut = replace_plan(plan, qk_pairs=plan.qk_pairs - 2, intermediate_size=30)
    context = context_of(settings, rotary, batch_size=4)
    attention_inner, calls = decoder_layer.attention_inner, 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return attention_inner(*arguments)

    monkeypatch.setattr(decoder_layer, "attention_inner", counted)
    width = weights.attention_output.weight.shape[1]
    results, passes = [], []
    for batches in (0, 1, 3):
        room = batches * 4 * SEQUENCE * width * 4
        monkeypatch.setattr(hidden_states_module, "KEPT_INNER_BYTES", room)
        states, calls = hidden_states(), 0
        with torch.no_grad():
            LayerCompressor(weights, cut, states, context).run()
        results.append(states.compressed)
        passes.append(calls)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert passes == [12, 11, 9]


def test_batches_on_a_cpu_have_a_limited_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, settings, rotary, _ = opened("qwen3")
    context = context_of(settings, rotary, batch_size=8)
    sizes = []
    for tokens in (1, 5 * SEQUENCE + 1, 100 * SEQUENCE):
        monkeypatch.setattr(hidden_states_module, "TOKENS_AT_ONCE", tokens)
        layer_pass = LayerPass(weights, hidden_states(), context)
        sizes.append([rows.stop - rows.start for rows in layer_pass.batches()])
    assert sizes == [[1] * SAMPLES, [5, 5, 2], [8, 4]]
