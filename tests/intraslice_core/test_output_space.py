"""The fit of a projection that a norm follows, in the space of the hidden states."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.compensation import OutputSpace
from intraslice_core.decoder_layer import LayerSettings, Linear, Norm, NormType

TOKENS, WIDTH, HIDDEN = 40, 6, 5


def space(
    weight: torch.Tensor | None, norm_type: NormType = "rms_plus_one", bias: bool = False
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
        ),
    )


def some_inner() -> torch.Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def some_weight() -> torch.Tensor:
    return torch.tensor([0.5, -1.4, 0.0, 2.0, -0.3])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm_type", ["rms", "rms_plus_one"])
def test_the_added_output_is_linear_in_the_fitted_input(norm_type: NormType, bias: bool) -> None:
    weight = torch.tensor([0.5, -1.4, 0.2, 2.0, -0.3])
    fitted = space(weight, norm_type, bias)
    seen = fitted.observe(some_inner(), some_inner())
    projected = fitted.output(some_inner())
    unit = projected / (projected.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = unit * (weight + 1 if norm_type == "rms_plus_one" else weight)
    torch.testing.assert_close(seen.added, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.own, expected, rtol=1e-5, atol=1e-5)
    linear = seen.inner.double() @ fitted.rows()
    torch.testing.assert_close(linear, expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", [None, some_weight()])
def test_solved_rows_are_the_weights_of_the_projection(weight: torch.Tensor | None) -> None:
    fitted = space(weight, bias=True)
    rows = fitted.solved(fitted.rows())
    torch.testing.assert_close(rows[:-1].mT.float(), fitted.output.weight)
    torch.testing.assert_close(rows[-1].float(), fitted.output.bias)


def test_without_a_norm_the_space_is_unchanged() -> None:
    fitted, inner = space(None), some_inner()
    seen = fitted.observe(inner, inner)
    assert torch.equal(seen.inner, inner)
    assert torch.equal(seen.own, fitted.output(inner))
    target = torch.ones(TOKENS, HIDDEN)
    assert torch.equal(fitted.correction(target, seen), target - seen.added)


def test_columns_of_zero_norm_weight_are_fitted_but_not_corrected() -> None:
    """A zero weight of the norm removes a column's output but not its part in the divisor."""
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    fitted = space(weight, "rms")
    seen = fitted.observe(some_inner(), some_inner())
    correction = fitted.correction(torch.ones(TOKENS, HIDDEN), seen)
    assert torch.equal(correction[:, 2], torch.zeros(TOKENS))
    assert (correction[:, [0, 1, 3, 4]] != 0).all()
    solution = torch.linalg.lstsq(seen.inner.double(), seen.own.double()).solution
    weights = fitted.solved(solution).mT.float()
    torch.testing.assert_close(weights, fitted.output.weight, rtol=1e-3, atol=1e-3)
