"""Dampings chosen by sources left out suit text of other kinds, unlike those of held-out text."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from intraslice_core import compensation, decoder_layer
from intraslice_core.calibration import sequence_groups, sequence_sources
from intraslice_core.compensation import OutputSpace, SplitAccumulator
from intraslice_core.config import CalibrationConfig
from intraslice_core.dampings import PROBES, Dampings, choose_dampings
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear, Rotary
from intraslice_core.families.adapter import family_for
from intraslice_core.families.canonical import layer_settings, layer_weights, rotary_tables
from intraslice_core.hidden_states import HiddenStates, LayerContext, LayerPass, group_sources
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core.linalg import DampedMatrix, Factor
from intraslice_core.methods import METHODS
from intraslice_core.plan import LayerPlan
from intraslice_core.statistics import Moments
from intraslice_core.statistics_cache import DenseStates, StatisticsCache
from tests.intraslice_core.tiny_models import tiny_family_model

WIDTH, HIDDEN = 14, 20
CPU = torch.device("cpu")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the choice --------------------------------------------------------------------------------


def source(effect: float, seed: int, tokens: int) -> Moments:
    """Return moments of a text on which the outputs differ from the prior by its own effect."""
    inner = drawn(tokens, WIDTH, seed=seed)
    output = inner @ (PRIOR + effect * 0.3 * drawn(WIDTH, HIDDEN, seed=2))
    return Moments(
        gram=inner.mT @ inner / tokens,
        cross=inner.mT @ output / tokens,
        correction=torch.zeros(WIDTH, HIDDEN, dtype=torch.float64),
        energy=output.square().sum().item() / tokens,
        tokens=tokens,
    )


PRIOR = drawn(WIDTH, HIDDEN, seed=1)
CANDIDATES = Dampings(own=(1e-3, 1e-2, 0.1, 1.0, 10.0), correction=(), per_dimension=True)
BY_SOURCE = replace(CANDIDATES, by_source=True)


def test_an_effect_that_one_source_has_is_damped_only_by_leaving_out_the_source() -> None:
    """Held-out sequences of both sources have the effect as well, other text does not."""
    given, written = source(1.0, 10, 6000), source(-1.0, 11, 2000)
    held_out = source(1.0, 12, 900) + source(-1.0, 13, 300)
    optimistic = compensation.fit_output(given + written, held_out, PRIOR, CANDIDATES)
    honest = compensation.fit_output(given, written, PRIOR, BY_SOURCE)
    assert optimistic.damping_own == min(CANDIDATES.own)
    assert honest.damping_own == max(CANDIDATES.own)
    error_of = partial(compensation.squared_error, source(0.0, 14, 2000))
    assert error_of(honest.weight) < 0.02 * error_of(optimistic.weight)


def test_an_effect_that_all_sources_have_is_fitted_whole() -> None:
    given, written = source(1.0, 10, 6000), source(1.0, 11, 2000)
    assert choose_dampings(given, written, PRIOR, BY_SOURCE) == (min(CANDIDATES.own), None)


@pytest.mark.parametrize(("energies", "expected"), [((1.0, 1.0), 0.25), ((1e4, 1.0), 1.0)])
def test_the_chosen_damping_minimises_the_sum_of_relative_errors(
    energies: tuple[float, float], expected: float
) -> None:
    """With `H = I`, a fit on an effect V gives `t V` at `t = 1 / (1 + μ)`.

    Sources with the effects V and V/2 have the errors `(t - 1/2)² / E₂ + (t/2 - 1)² / E₁`, least
    at `t = (1/(2 E₁) + 1/(2 E₂)) / (1/E₂ + 1/(4 E₁))`: 0.8 for equal energies, and 1/2 if the first
    source, whose own error does not count then, has by far the most. Each fold has half of the
    tokens, so that μ is twice the damping.
    """
    parts = planted(1.0, energies[0], 100), planted(0.5, energies[1], 100)
    own = tuple(damping / 2 for damping in (0.01, 0.05, 0.25, 1.0, 4.0))
    dampings = Dampings(own=own, correction=(), by_source=True)
    assert choose_dampings(*parts, PRIOR, dampings) == (expected / 2, None)
    assert choose_dampings(*reversed(parts), PRIOR, dampings) == (expected / 2, None)


@pytest.mark.parametrize("first", [True, False])
def test_of_unequal_sources_the_smaller_is_left_out(first: bool) -> None:
    """The fit on 3/4 of the tokens with the effect V predicts V/2 best at `t = 1/2`, `μ = 1`."""
    parts = planted(1.0, 1.0, 300), planted(0.5, 1.0, 100)
    own = tuple(0.75 * damping for damping in (0.01, 0.25, 1.0, 4.0))
    dampings = Dampings(own=own, correction=(), by_source=True)
    chosen = choose_dampings(*(parts if first else parts[::-1]), PRIOR, dampings)
    assert chosen == (0.75, None)


def planted(share: float, energy: float, tokens: int) -> Moments:
    """Return moments with `H = I` whose outputs differ from the prior by a share of one effect."""
    gram = torch.eye(WIDTH, dtype=torch.float64)
    return Moments(
        gram=gram,
        cross=gram @ PRIOR + share * drawn(WIDTH, HIDDEN, seed=3),
        correction=torch.zeros_like(PRIOR),
        energy=energy,
        tokens=tokens,
    )


def regression(hidden: int, seed: int, scale: float = 1.0, tokens: int = 60) -> Moments:
    """Return moments of noisy linear outputs of strongly correlated regressors."""
    inner = scale * drawn(tokens, WIDTH, seed=seed) @ drawn(WIDTH, WIDTH, seed=1)
    own = inner @ drawn(WIDTH, hidden, seed=2) + 8 * drawn(tokens, hidden, seed=seed + 1)
    correction = 0.1 * inner @ drawn(WIDTH, hidden, seed=3)
    correction += 4 * drawn(tokens, hidden, seed=seed + 2)
    return Moments(
        gram=inner.mT @ inner / tokens,
        cross=inner.mT @ own / tokens,
        correction=inner.mT @ correction / tokens,
        energy=(own + correction).square().sum().item() / tokens,
        tokens=tokens,
    )


GRID = Dampings(
    own=(1e-6, 1e-2, 0.1, 1.0),
    correction=(0.1, 1.0, 10.0),
    per_dimension=True,
    by_source=True,
)


@pytest.mark.parametrize("has_prior", [False, True])
@pytest.mark.parametrize("tokens", [(60, 60), (60, 40), (40, 60)])
@pytest.mark.parametrize("seed", [100, 300])
def test_both_dampings_have_the_least_relative_error_on_the_sources_left_out(
    seed: int, tokens: tuple[int, int], has_prior: bool
) -> None:
    parts = [
        regression(HIDDEN, seed + 100 * number, scale, count)
        for number, (scale, count) in enumerate(zip((1.0, 3.0), tokens, strict=True))
    ]
    prior = drawn(WIDTH, HIDDEN, seed=2) if has_prior else None
    folds = [pair for pair in (parts, parts[::-1]) if pair[0].tokens >= pair[1].tokens]

    def error(own: float, correction: float | None) -> float:
        """Return the error of the fits with dampings for the tokens that they lack."""
        total = 0.0
        for fit, scored in folds:
            scale = sum(tokens) / fit.tokens
            corrections = () if correction is None else (scale * correction,)
            single = Dampings(own=(scale * own,), correction=corrections, per_dimension=True)
            weight = compensation.fit_output(fit, None, prior, single).weight
            target = scored.cross if correction is None else scored.cross + scored.correction
            total += compensation.excess_error(scored.gram, weight, target) / scored.energy
        return total

    own = min(GRID.own, key=lambda damping: error(damping, None))
    correction = min(GRID.correction, key=lambda damping: error(own, damping))
    assert choose_dampings(*parts, prior, GRID) == (own, correction)


@pytest.mark.parametrize("hidden", [HIDDEN, 4 * PROBES])
@pytest.mark.parametrize(("tokens", "folds"), [((60, 60), 2), ((60, 20), 1), ((20, 60), 1)])
def test_every_damping_is_factorised_once_for_each_source_left_out(
    hidden: int, tokens: tuple[int, int], folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [regression(hidden, 100 * (n + 1), tokens=count) for n, count in enumerate(tokens)]
    tried: list[float] = []
    factor = DampedMatrix.factor

    def recording(matrix: DampedMatrix, damping: float) -> Factor:
        tried.append(damping)
        return factor(matrix, damping)

    monkeypatch.setattr(DampedMatrix, "factor", recording)
    method = METHODS["intraslice_plus"]
    every = Dampings(
        own=method.damping_own,
        correction=method.damping_correction,
        per_dimension=True,
        by_source=True,
    )
    choose_dampings(*parts, None, every)
    assert all(tried.count(damping) == folds for damping in tried)
    assert len(tried) <= 8 * folds


def test_the_result_is_fitted_on_all_sources() -> None:
    given, written = regression(HIDDEN, 100), regression(HIDDEN, 200, tokens=40)
    fitted = compensation.fit_output(given, written, None, GRID)
    assert fitted.damping_correction is not None
    single = Dampings(
        own=(fitted.damping_own,), correction=(fitted.damping_correction,), per_dimension=True
    )
    whole = compensation.fit_output(given + written, None, None, single)
    torch.testing.assert_close(fitted.weight, whole.weight)


# -- the groups --------------------------------------------------------------------------------


def calibration(*sources: tuple[str, float], **settings: object) -> CalibrationConfig:
    parts = [{"source": name, "weight": weight} for name, weight in sources]
    values = {"source": parts, "samples": 16, "sequence_length": 16, **settings}
    return CalibrationConfig.model_validate(values)


@pytest.mark.parametrize(
    ("sources", "share", "expected"),
    [
        ([("pydoc", 1)], 0.25, (0, 1)),
        ([("pydoc", 1)], 0.0, None),
        ([("self", 1)], 0.0, None),
        ([("pydoc", 1), ("pycode", 1)], 0.25, (0, 0, 1)),
        ([("pydoc", 1), ("pycode", 1), ("chat", 1), ("self", 1)], 0.0, (0, 0, 1, 1)),
        ([("pydoc", 1), ("pycode", 1)], 0.0, (0, 1)),
        ([("pydoc", 1), ("pycode", 3), ("a.txt", 2)], 0.0, (1, 0, 1)),
        ([("self", 1), ("chat", 1)], 0.0, (0, 1)),
    ],
)
def test_sources_are_divided_into_given_and_written_text_or_else_evenly(
    sources: list[tuple[str, float]], share: float, expected: tuple[int, ...] | None
) -> None:
    assert calibration(*sources, self_share=share).source_groups() == expected


def test_sequences_are_sorted_by_group_in_their_order() -> None:
    config = calibration(("pydoc", 1), ("pycode", 1), self_share=0.25)
    tokens, groups = torch.arange(16).unsqueeze(1), sequence_groups(config)
    assert groups is not None
    rows, left_out = group_sources(tokens, groups)
    is_written = sequence_sources(config) == 2
    assert left_out == is_written.sum() == 4
    assert torch.equal(rows[:-4], tokens[~is_written])
    assert torch.equal(rows[-4:], tokens[is_written])
    assert sequence_groups(calibration(("pydoc", 1), self_share=0.0)) is None
    assert group_sources(tokens, None) == (tokens, 0)


SAMPLES, SEQUENCE = 12, 24


def opened() -> tuple[LayerWeights, LayerSettings, Rotary, LayerPlan]:
    model = tiny_family_model("qwen3")
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


def hidden_states(left_out: int = 0) -> HiddenStates:
    hidden = torch.randn(SAMPLES, SEQUENCE, 48, generator=torch.Generator().manual_seed(0))
    return HiddenStates(compressed=hidden, dense=hidden.clone(), left_out=left_out)


def context_of(settings: LayerSettings, rotary: Rotary, **changes: object) -> LayerContext:
    return LayerContext(
        layer=0,
        settings=settings,
        rotary=rotary,
        method=replace(METHODS["intraslice_plus"], **changes),
        batch_size=5,
        device=CPU,
        stored_dtype=torch.float32,
        before_batch=lambda done: None,
    )


@pytest.mark.parametrize(
    ("left_out", "held_out", "changes"),
    [(7, 7, {}), (1, 1, {}), (0, 1, {}), (7, 0, {"damping_own": (0.1,)})],
)
def test_no_batch_mixes_groups_of_sources(
    left_out: int, held_out: int, changes: dict[str, object]
) -> None:
    weights, settings, rotary, _ = opened()
    context = context_of(settings, rotary, validation="left_out_source", **changes)
    layer_pass = LayerPass(weights, hidden_states(left_out), context)
    batches = list(layer_pass.batches())
    rows = [row for batch in batches for row in range(batch.start, batch.stop)]
    assert rows == list(range(SAMPLES))
    border = SAMPLES - held_out
    assert all(batch.stop <= border or batch.start >= border for batch in batches)
    assert sum(b.stop - b.start for b in batches if layer_pass.is_held_out(b)) == held_out
    assert layer_pass.has_held_out == (held_out > 0)
    assert layer_pass.leaves_out_sources == (left_out > 0 and held_out > 0)


@pytest.mark.parametrize("own_is_linear", [False, True])
def test_moments_of_both_groups_add_up_to_those_of_all_sequences(own_is_linear: bool) -> None:
    _, settings, _, _ = opened()
    output = Linear(weight=drawn(HIDDEN, WIDTH, seed=1), bias=None)
    space = OutputSpace(output=output, norm=None, settings=settings)
    make = partial(SplitAccumulator, space, CPU, own_is_linear=own_is_linear)
    split, whole = make(has_held_out=True), make(has_held_out=False)
    for batch, size in enumerate((5, 5, 2)):
        inner = drawn(size, SEQUENCE, WIDTH, seed=10 + batch)
        target = drawn(size, SEQUENCE, HIDDEN, seed=20 + batch)
        for moments in (split, whole):
            observation = space.observe(inner, inner)
            moments.add(observation, target, None, is_held_out=batch > 0)
    given, written = split.moments()
    assert written is not None
    everything, (expected, nothing) = given + written, whole.moments()
    assert nothing is None
    assert (given.tokens, written.tokens) == (5 * SEQUENCE, 7 * SEQUENCE)
    assert everything.tokens == expected.tokens == SAMPLES * SEQUENCE
    for name in ("gram", "cross", "correction"):
        sums = getattr(everything, name), getattr(expected, name)
        torch.testing.assert_close(*sums, rtol=1e-12, atol=1e-12)
    assert everything.energy == pytest.approx(expected.energy, rel=1e-12)


def test_without_groups_held_out_sequences_choose_as_before() -> None:
    weights, settings, rotary, plan = opened()
    cut = plan.model_copy(update={"intermediate_size": 30, "v_head_dim": plan.v_head_dim - 2})
    results = []
    with torch.no_grad():
        for validation in ("held_out", "left_out_source"):
            states = hidden_states()
            context = context_of(settings, rotary, validation=validation)
            outcome = LayerCompressor(weights, cut, states, context).run()
            results.append((states.compressed, outcome.mlp.damping, outcome.attention.damping))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_a_layer_is_damped_more_where_its_groups_differ(tmp_path: Path) -> None:
    """Dense states of the groups deviate from the MLP's output in opposite directions."""
    weights, settings, rotary, plan = opened()
    cut = plan.model_copy(update={"intermediate_size": 30})
    dampings = {}
    with torch.no_grad():
        for left_out in (0, 4):
            signs = torch.tensor([1.0] * 8 + [-1.0] * 4)
            if left_out == 0:  # the held-out sequence is of the larger group
                signs = signs.flip(0)
            states, context = hidden_states(left_out), context_of(settings, rotary)
            between = states.compressed + decoder_layer.attention(
                states.compressed, weights, settings, rotary
            )
            added = decoder_layer.mlp(between, weights, settings)
            cache = StatisticsCache(directory=tmp_path / str(left_out), max_bytes=2**30)
            dense_states = DenseStates(cache=cache, key="planted")
            dense_states.keep(0, "attention", between)
            dense_states.keep(0, "mlp", between + (1 + signs.view(-1, 1, 1)) * added)
            planted_context = replace(context, dense_states=dense_states)
            outcome = LayerCompressor(weights, cut, states, planted_context).run()
            dampings[left_out] = outcome.mlp.damping["correction"]
    assert dampings[0] <= 0.3
    assert dampings[4] == max(METHODS["intraslice_plus"].damping_correction)
