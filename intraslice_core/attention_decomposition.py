"""Compression of one attention by MoDeGPT's types II and III (arXiv 2408.09632).

Rotary pairs are removed by their score without refit. Values and output projection are factorised
by the second moment of the values alone: what the attention does with them does not matter. One
pass over the calibration measures both.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from intraslice_core import decoder_layer, slicing
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.hidden_states import LayerContext, LayerPass
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.pair_statistics import pair_statistics
from intraslice_core.plan import LayerPlan
from intraslice_core.ranks import Ranks
from intraslice_core.refit import ModuleOutcome
from intraslice_core.rotary_statistics import HeadEnergies, RotaryStatistics
from intraslice_core.selection import rotary_pairs, spectra, value_basis
from intraslice_core.selection.spectra import Spectrum


def decompose_attention(
    dense: LayerWeights, plan: LayerPlan, layer_pass: LayerPass, context: LayerContext
) -> tuple[Tensor, LayerWeights, ModuleOutcome]:
    """Cut the rotary pairs and value dimensions of a layer; the hidden states do not advance.

    Args:
        dense: layer.
        plan: of the layer, with all heads.
        layer_pass: pass of the hidden states through the layer.
        context: of the layer.

    Returns:
        Kept pairs, (num_key_value_heads, pairs), ascending, int64; the layer, rounded to the dtype
        of the saved model; and the measurements.

    Raises:
        NumericalError: if a statistic is not finite or a decomposition fails.
    """
    settings = context.settings
    groups, total = settings.num_key_value_heads, settings.head_dim // 2
    if plan.qk_pairs == total and plan.v_head_dim == settings.head_dim:
        layer_pass.skip()
        pairs = torch.arange(total, device=context.device).expand(groups, total)
        return pairs, dense, ModuleOutcome(module="attention", explained_energy=1.0)
    values = _ValueMoments(dense, layer_pass.prefix_length, layer_pass.ranks)
    statistics, energies = pair_statistics(dense, layer_pass, context, values.add)
    moment = values.mean()
    return layer_pass.ranks.computed(
        layer_pass.owner, lambda: _decomposed(dense, plan, context, statistics, energies, moment)
    )


def _decomposed(
    dense: LayerWeights,
    plan: LayerPlan,
    context: LayerContext,
    statistics: RotaryStatistics,
    energies: HeadEnergies,
    moment: Tensor,
) -> tuple[Tensor, LayerWeights, ModuleOutcome]:
    """Return kept pairs, layer and measurements of `decompose_attention`."""
    settings, method = context.settings, context.method
    groups, total = settings.num_key_value_heads, settings.head_dim // 2
    pairs = torch.arange(total, device=context.device).expand(groups, total)
    weights, shown, share = dense, list[Spectrum](), 1.0
    if plan.qk_pairs < total:
        assert method.pair_score != "magnitude"  # only methods without refit select by weights
        score = rotary_pairs.pair_score(method.pair_score, statistics)
        shown.append(spectra.score_spectrum("rotary pairs", "score", score, plan.qk_pairs))
        pairs = rotary_pairs.keep_best_pairs(score, plan.qk_pairs)
        weights = slicing.slice_rotary_pairs(weights, pairs, settings, energies)
    if plan.v_head_dim < settings.head_dim:
        weights, spectrum, share = _factorise_values(weights, moment, plan.v_head_dim)
        shown.append(spectrum)
    outcome = ModuleOutcome(module="attention", explained_energy=share, spectra=tuple(shown))
    return pairs, slicing.rounded_to(weights, context.stored_dtype), outcome


def _factorise_values(
    weights: LayerWeights, moment: Tensor, keep: int
) -> tuple[LayerWeights, Spectrum, float]:
    """Return the layer with `keep` value dimensions, the spectrum and the share of it that remains.

    Args:
        weights: layer with the dense value width.
        moment: `E[v vᵀ]`, (num_key_value_heads, head_dim, head_dim), float64.
        keep: value dimensions to keep.
    """
    output = weights.attention_output
    factors = value_basis.two_svds(moment, output.weight.mT, keep)
    projection = slicing.value_projection(factors.expansion, weights.num_attention_heads)
    sliced = slicing.project_values(weights, factors.basis)
    sliced = replace(sliced, attention_output=slicing.project_inputs(output, projection))
    spectrum = spectra.score_spectrum("value dims", "eigenvalue", factors.spectrum, keep)
    share = factors.spectrum[..., :keep].sum() / factors.spectrum.sum().clamp_min(1e-300)
    return sliced, spectrum, float(share)


class _ValueMoments:
    """Accumulator of `E[v vᵀ]` of every KV group."""

    def __init__(self, dense: LayerWeights, prefix_length: int, ranks: Ranks) -> None:
        self._dense, self._prefix_length, self._ranks = dense, prefix_length, ranks
        groups = dense.num_key_value_heads
        width = dense.value.weight.shape[0] // groups
        self._sum = torch.zeros(
            groups, width, width, dtype=WORKING_DTYPE, device=dense.value.weight.device
        )
        self._tokens = 0

    def add(self, normed: Tensor) -> None:
        """Add one batch of the attention's inputs, (batch, sequence, hidden_size)."""
        values = decoder_layer.values(normed, self._dense)[:, :, self._prefix_length :]
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        heads = wide.transpose(0, 1).flatten(1, 2)
        self._sum += heads.mT @ heads
        self._tokens += heads.shape[1]

    def mean(self) -> Tensor:
        """Return the mean of all ranks, (num_key_value_heads, head_dim, head_dim), float64."""
        self._ranks.sum_([self._sum])
        (tokens,) = self._ranks.totals([self._tokens])
        return self._sum / tokens
