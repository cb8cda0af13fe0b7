"""Output norms: fits in the space of the residual stream are converted back to the projection."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.compensation import OutputSpace
from intraslice_core.decoder_layer import LayerSettings, Linear, Norm, NormType

TOKENS, WIDTH, HIDDEN = 40, 6, 5


def space(
    weight: torch.Tensor | None,
    norm_type: NormType = "rms_plus_one",
    bias: bool = False,
    residual_scale: float = 1.0,
) -> OutputSpace:
    generator = torch.Generator().manual_seed(0)
    return OutputSpace(
        output=Linear(
            weight=torch.randn(HIDDEN, WIDTH, generator=generator),
            bias=torch.randn(HIDDEN, generator=generator) if bias else None,
        ),
        norm=None if weight is None else Norm(weight=weight),
        settings=LayerSettings(
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=2,
            activation=torch.relu,
            norm_eps=1e-6,
            norm_type=norm_type,
            attention_scale=1.0,
            residual_scale=residual_scale,
        ),
    )


def some_inner() -> torch.Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def some_weight() -> torch.Tensor:
    return torch.tensor([0.5, -1.4, 0.0, 2.0, -0.3])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm_type", ["rms", "rms_plus_one"])
def test_contribution_is_linear_in_the_regressors(norm_type: NormType, bias: bool) -> None:
    weight = torch.tensor([0.5, -1.4, 0.2, 2.0, -0.3])
    output_space = space(weight, norm_type, bias)
    observation = output_space.observe(some_inner(), some_inner())
    projected = output_space.output(some_inner())
    unit = projected / (projected.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = unit * (weight + 1 if norm_type == "rms_plus_one" else weight)
    torch.testing.assert_close(observation.added, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(observation.own, expected, rtol=1e-5, atol=1e-5)
    linear = observation.inner.double() @ output_space.rows()
    torch.testing.assert_close(linear, expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", [None, some_weight()])
def test_unscaled_rows_are_those_of_the_projection(weight: torch.Tensor | None) -> None:
    output_space = space(weight, bias=True)
    rows = output_space.unscaled(output_space.rows())
    torch.testing.assert_close(rows[:-1].mT.float(), output_space.output.weight)
    torch.testing.assert_close(rows[-1].float(), output_space.output.bias)


@pytest.mark.parametrize("weight", [None, some_weight()])
def test_a_residual_scale_multiplies_contributions_and_is_divided_out(
    weight: torch.Tensor | None,
) -> None:
    plain, scaled = (space(weight, bias=True, residual_scale=scale) for scale in (1.0, 0.25))
    expected = plain.observe(some_inner(), some_inner())
    observation = scaled.observe(some_inner(), some_inner())
    assert torch.equal(observation.inner, expected.inner)
    torch.testing.assert_close(observation.added, 0.25 * expected.added)
    torch.testing.assert_close(observation.own, 0.25 * expected.own)
    torch.testing.assert_close(scaled.rows(), 0.25 * plain.rows())
    torch.testing.assert_close(scaled.unscaled(scaled.rows()), plain.unscaled(plain.rows()))


def test_without_a_norm_nothing_is_changed() -> None:
    output_space, inner = space(None), some_inner()
    observation = output_space.observe(inner, inner)
    assert torch.equal(observation.inner, inner)
    assert torch.equal(observation.own, output_space.output(inner))
    target = torch.ones(TOKENS, HIDDEN)
    assert torch.equal(output_space.correction(target, observation), target - observation.added)


def test_columns_of_negligible_weight_are_fitted_but_not_corrected() -> None:
    """A zero weight removes a column from the output, but the column counts in the norm's rms."""
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    output_space = space(weight, "rms")
    observation = output_space.observe(some_inner(), some_inner())
    correction = output_space.correction(torch.ones(TOKENS, HIDDEN), observation)
    assert torch.equal(correction[:, 2], torch.zeros(TOKENS))
    assert (correction[:, [0, 1, 3, 4]] != 0).all()
    solution = torch.linalg.lstsq(observation.inner.double(), observation.own.double()).solution
    fitted = output_space.unscaled(solution).mT.float()
    torch.testing.assert_close(fitted, output_space.output.weight, rtol=1e-3, atol=1e-3)
