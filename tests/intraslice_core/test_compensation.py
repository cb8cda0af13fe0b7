"""Moments of selected regressors, and the choice of dampings, equal those of plain definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from intraslice_core import compensation
from intraslice_core.compensation import SplitAccumulator
from intraslice_core.dampings import PROBES, Dampings, choose_dampings
from intraslice_core.decoder_layer import LayerSettings, Linear, Norm
from intraslice_core.linalg import DampedMatrix, Factor
from intraslice_core.methods import METHODS
from intraslice_core.statistics import Moments

WIDTH, HIDDEN, KEPT = 14, 10, 9
CPU = torch.device("cpu")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def output_space(*, has_bias: bool, has_norm: bool) -> compensation.OutputSpace:
    weight = drawn(HIDDEN, seed=3)
    weight[2] = 1e-6  # negligible: never used for the correction
    settings = LayerSettings(
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        activation=torch.nn.functional.silu,
        norm_eps=1e-6,
        attention_scale=0.5,
        residual_scale=0.7,
    )
    return compensation.OutputSpace(
        output=Linear(
            weight=drawn(HIDDEN, WIDTH, seed=1), bias=drawn(HIDDEN, seed=2) if has_bias else None
        ),
        norm=Norm(weight=weight) if has_norm else None,
        settings=settings,
    )


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("prefix_length", [0, 1])
def test_moments_of_leading_entries_equal_a_selection_from_those_of_all(
    has_bias: bool, has_norm: bool, prefix_length: int
) -> None:
    """Own outputs that follow from the Gram matrix equal those that are computed and streamed."""
    space = output_space(has_bias=has_bias, has_norm=has_norm)
    leading = SplitAccumulator(
        space,
        CPU,
        own_is_linear=True,
        has_held_out=True,
        prefix_length=prefix_length,
        kept=KEPT,
    )
    streamed = SplitAccumulator(
        space, CPU, own_is_linear=False, has_held_out=True, prefix_length=prefix_length
    )
    for batch in range(3):
        inner = drawn(2, 6, WIDTH, seed=10 + batch)
        target, stream = (drawn(2, 6, HIDDEN, seed=20 * n + batch) for n in (1, 2))
        for moments in (leading, streamed):
            needs_own = moments.needs_own(has_target=True)
            assert needs_own == (has_norm or moments is streamed)
            observation = space.observe(inner, inner) if needs_own else space.regressors(inner)
            moments.add(observation, target, stream, is_held_out=batch == 2)
    # Norms are computed in float32.
    close = partial(
        torch.testing.assert_close, **({"rtol": 1e-4, "atol": 1e-5} if has_norm else {})
    )
    regressors = torch.arange(KEPT)
    if has_bias:
        regressors = torch.cat((regressors, torch.tensor([WIDTH])))
    for ours, every in zip(leading.moments(), streamed.moments(), strict=True):
        assert ours is not None
        assert every is not None
        expected = compensation.select(every, regressors)
        for name in ("gram", "cross", "correction"):
            close(getattr(ours, name), getattr(expected, name))
        assert ours.energy == pytest.approx(expected.energy, rel=1e-5)
        prior = space.rows()[regressors]
        residual = expected.cross - expected.gram @ prior
        close(ours.residual, residual)


def test_the_own_output_of_a_target_of_its_own_has_its_energy() -> None:
    space = output_space(has_bias=False, has_norm=False)
    moments = SplitAccumulator(space, CPU, own_is_linear=True, has_held_out=False)
    inner = drawn(2, 6, WIDTH, seed=10)
    moments.add(space.regressors(inner), None, None, is_held_out=False)
    fit, _ = moments.moments()
    own = 0.7 * space.output(inner)
    assert fit.energy == pytest.approx(own.square().sum().item() / 12)
    assert not fit.correction.any()


def regression(hidden: int, seed: int, tokens: int = 60, noise: float = 8.0) -> Moments:
    """Return moments of noisy linear outputs of strongly correlated regressors."""
    mixing, weight = drawn(WIDTH, WIDTH, seed=1), drawn(WIDTH, hidden, seed=2)
    inner = drawn(tokens, WIDTH, seed=seed) @ mixing
    own = inner @ weight + noise * drawn(tokens, hidden, seed=seed + 1)
    correction = 0.1 * inner @ drawn(WIDTH, hidden, seed=3) + 4 * drawn(
        tokens, hidden, seed=seed + 2
    )
    return Moments(
        gram=inner.mT @ inner / tokens,
        cross=inner.mT @ own / tokens,
        correction=inner.mT @ correction / tokens,
        energy=(own + correction).square().sum().item() / tokens,
        tokens=tokens,
    )


DAMPINGS = Dampings(own=(1e-6, 1e-2, 0.1, 1.0), correction=(0.1, 1.0, 10.0), per_dimension=True)


@pytest.mark.parametrize("has_prior", [False, True])
def test_chosen_dampings_have_the_least_error_on_held_out_tokens(has_prior: bool) -> None:
    fit, held_out = regression(20, 100), regression(20, 200)
    prior = drawn(WIDTH, 20, seed=2) if has_prior else None
    plain = replace(held_out, correction=torch.zeros_like(held_out.correction))

    def solution(own: float, correction: float | None) -> Tensor:
        single = Dampings(
            own=(own,), correction=() if correction is None else (correction,), per_dimension=True
        )
        return compensation.fit_output(fit, None, prior, single).weight

    own = min(
        DAMPINGS.own, key=lambda damping: compensation.squared_error(plain, solution(damping, None))
    )
    correction = min(
        DAMPINGS.correction,
        key=lambda damping: compensation.squared_error(held_out, solution(own, damping)),
    )
    assert choose_dampings(fit, held_out, prior, DAMPINGS) == (own, correction)


@pytest.mark.parametrize(("noise", "most"), [(0.5, 8), (8.0, 6), (60.0, 5)])
def test_dampings_far_from_the_best_are_not_tried(
    noise: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = METHODS["intraslice_plus"]
    candidates = Dampings(
        own=method.damping_own, correction=method.damping_correction, per_dimension=True
    )
    fit, held_out = (regression(20, seed, noise=noise) for seed in (100, 200))
    tried: list[float] = []
    factor = DampedMatrix.factor

    def recording(matrix: DampedMatrix, damping: float) -> Factor:
        tried.append(damping)
        return factor(matrix, damping)

    monkeypatch.setattr(DampedMatrix, "factor", recording)
    chosen = choose_dampings(fit, held_out, None, candidates)
    assert len(tried) == len(set(tried)) <= most
    every = replace(candidates, own=(chosen[0],))
    alone = [
        choose_dampings(fit, held_out, None, replace(every, correction=pair))[1]
        for pair in ((chosen[1], other) for other in candidates.correction)
    ]
    assert alone == [chosen[1]] * len(alone)


def test_random_combinations_of_many_outputs_choose_almost_the_best_dampings() -> None:
    hidden = 4 * PROBES
    fit, held_out = regression(hidden, 100), regression(hidden, 200)
    chosen = choose_dampings(fit, held_out, None, DAMPINGS)

    def error(own: float, correction: float | None) -> float:
        assert correction is not None
        single = Dampings(own=(own,), correction=(correction,), per_dimension=True)
        weight = compensation.fit_output(fit, None, None, single).weight
        return compensation.squared_error(held_out, weight)

    errors = {
        (own, correction): error(own, correction)
        for own in DAMPINGS.own
        for correction in DAMPINGS.correction
    }
    assert errors[chosen] < 1.02 * min(errors.values())
    assert max(errors.values()) > 1.1 * min(errors.values())


@pytest.mark.parametrize("correction", [(), (0.3,), (0.1,)])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_reported_error_is_that_of_the_fitted_weight(
    correction: tuple[float, ...], in_place: bool
) -> None:
    fit, held_out = regression(20, 100), regression(20, 200)
    everything, prior = fit + held_out, drawn(WIDTH, 20, seed=5)
    dampings = Dampings(own=(0.1,), correction=correction)
    fitted = compensation.fit_output(fit, held_out, prior, dampings, in_place=in_place)
    expected = compensation.relative_error(everything, fitted.weight)
    assert math.isclose(fitted.relative_error, expected, rel_tol=1e-9)
