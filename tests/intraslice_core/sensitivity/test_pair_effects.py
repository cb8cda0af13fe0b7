"""Features of rotary pairs are derivatives of the attention's output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intraslice_core.decoder_layer import LayerSettings
from intraslice_core.errors import NumericalError
from intraslice_core.sensitivity.pair_effects import PairEffectAccumulator, PairInputs

HEADS, GROUPS, WIDTH, LENGTH = 4, 2, 6, 9


def layer_settings(**changes) -> LayerSettings:
    return LayerSettings(
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=WIDTH,
        activation=torch.nn.functional.silu,
        norm_eps=1e-6,
        attention_scale=0.4,
        **changes,
    )


def draw() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, LENGTH, WIDTH), (GROUPS, LENGTH, WIDTH), (GROUPS, LENGTH, WIDTH))
    query, key, value = (torch.randn(*shape, generator=generator) for shape in shapes)
    return query, key, value, torch.randn(HEADS, WIDTH, 3, generator=generator)


def outputs(coefficients: Tensor, head: int, settings: LayerSettings) -> Tensor:
    """Return a head's output times the metric, with weighted pairs, at every query."""
    query, key, value, metric = draw()
    group = head // (HEADS // GROUPS)
    (q1, q2), (k1, k2) = query[head].chunk(2, -1), key[group].chunk(2, -1)
    real = torch.einsum("qp,kp->qkp", q1, k1) + torch.einsum("qp,kp->qkp", q2, k2)
    imaginary = torch.einsum("qp,kp->qkp", q1, k2) - torch.einsum("qp,kp->qkp", q2, k1)
    scores = torch.cat((real, imaginary), -1) @ coefficients * settings.attention_scale
    if settings.attn_logit_softcapping is not None:
        cap = settings.attn_logit_softcapping
        scores = cap * torch.tanh(scores / cap)
    positions = torch.arange(LENGTH)
    distance = positions.unsqueeze(1) - positions
    visible = distance >= 0
    if settings.sliding_window is not None:
        visible &= distance < settings.sliding_window
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value[group] @ metric[head]


@pytest.mark.parametrize(
    "changes", [{}, {"attn_logit_softcapping": 1.5}, {"sliding_window": 3}], ids=str
)
def test_moment_is_that_of_the_outputs_derivatives(changes):
    settings = layer_settings(**changes)
    query, key, value, metric = draw()
    positions = torch.tensor([0, 2, 5, 8])
    effects = PairEffectAccumulator(
        num_key_value_heads=GROUPS, head_dim=WIDTH, settings=settings, device=torch.device("cpu")
    )
    effects.add(PairInputs(query=query, key=key, value=value), metric, positions)
    dense = torch.cat((torch.ones(WIDTH // 2), torch.zeros(WIDTH // 2)))
    expected = torch.zeros(GROUPS, WIDTH, WIDTH)
    for head in range(HEADS):
        derivative = torch.autograd.functional.jacobian(
            lambda c, head=head: outputs(c, head, settings), dense
        )[positions].flatten(0, 1)
        expected[head // (HEADS // GROUPS)] += derivative.mT @ derivative
    torch.testing.assert_close(
        effects.moment().float(), expected / len(positions), rtol=1e-3, atol=1e-5
    )


def test_outputs_are_scaled_as_the_norm_behind_them_scales_each_position():
    query, key, value, metric = draw()
    scale = torch.linspace(0.5, 2.0, LENGTH)
    moments = []
    for position in (2, 8):
        for given in (scale, None):
            effects = PairEffectAccumulator(
                num_key_value_heads=GROUPS,
                head_dim=WIDTH,
                settings=layer_settings(),
                device=torch.device("cpu"),
            )
            inputs = PairInputs(query=query, key=key, value=value, scale=given)
            effects.add(inputs, metric, torch.tensor([position]))
            moments.append(effects.moment())
        expected = moments[-1] * float(scale[position]) ** 2
        torch.testing.assert_close(moments[-2], expected, rtol=1e-5, atol=1e-6)


def test_score_moments_are_the_partial_traces_of_the_derivatives_moment():
    settings = layer_settings()
    query, key, value, metric = draw()
    effects = PairEffectAccumulator(
        num_key_value_heads=GROUPS,
        head_dim=WIDTH,
        settings=settings,
        device=torch.device("cpu"),
        with_score_moments=True,
    )
    effects.add(PairInputs(query=query, key=key, value=value), metric, torch.arange(LENGTH))
    visible = torch.ones(LENGTH, LENGTH).tril().bool()
    expected = torch.zeros(GROUPS, WIDTH, WIDTH, WIDTH, WIDTH)
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)

        def output(change: Tensor, head: int = head, group: int = group) -> Tensor:
            """Return the head's output, weighed, if keys are multiplied by 1 + `change`."""
            keys = key[group] + key[group] @ change.mT
            scores = (query[head] @ keys.mT * settings.attention_scale).masked_fill(
                ~visible, -torch.inf
            )
            return scores.softmax(-1) @ value[group] @ metric[head]

        # By output, row (query dimension) and column (key dimension) of the change.
        derivative = torch.autograd.functional.jacobian(output, torch.zeros(WIDTH, WIDTH))
        flat = derivative.flatten(0, 1)
        expected[group] += torch.einsum("nab,ncd->abcd", flat, flat)
    of_queries, of_keys = effects.score_moments()
    torch.testing.assert_close(
        of_queries.float(), torch.einsum("gabcb->gac", expected) / LENGTH, rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(
        of_keys.float(), torch.einsum("gabad->gbd", expected) / LENGTH, rtol=1e-3, atol=1e-5
    )


def test_non_finite_activations_are_rejected():
    query, key, value, metric = draw()
    effects = PairEffectAccumulator(
        num_key_value_heads=GROUPS,
        head_dim=WIDTH,
        settings=layer_settings(),
        device=torch.device("cpu"),
    )
    with pytest.raises(NumericalError, match="no queries"):
        effects.moment()
    query[0, 1, 0] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        effects.add(PairInputs(query=query, key=key, value=value), metric, torch.tensor([1]))
