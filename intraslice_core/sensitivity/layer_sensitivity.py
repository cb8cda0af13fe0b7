"""What the estimator's walk has decided for a layer, and how a decision is applied to weights.

Nothing here depends on the ratio but the sizes asked for: orders and directions are those of the
dense model, learnt once (`estimation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import slicing
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear
from intraslice_core.selection import value_basis
from intraslice_core.selection.heads import kept_heads
from intraslice_core.selection.rotary_pairs import (
    PairChoice,
    eliminate_pairs,
    keep_shared_pairs,
    turned_queries,
)
from intraslice_core.statistics import HeadEnergies


@dataclass(frozen=True, kw_only=True)
class KeptHeads:
    """A rectangle of heads."""

    groups: Tensor
    """KV groups, (kept_groups,), ascending."""
    queries: Tensor
    """Query heads within each kept group, (kept_groups, kept_queries), ascending."""

    def columns(self, group_size: int, width: int) -> Tensor:
        """Places of the kept heads in a row of all query heads' `width` dims each."""
        heads = (self.groups.unsqueeze(-1) * group_size + self.queries).flatten()
        places = torch.arange(width, device=heads.device)
        return (heads.unsqueeze(-1) * width + places).flatten()


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One layer, as the walk saw it; float64 where nothing else is said."""

    pair_moment: Tensor
    """Of `selection.joint_pairs`, (num_key_value_heads, head_dim, head_dim), in units of loss."""
    query_energy: Tensor
    """(num_key_value_heads, pairs), before norm and RoPE."""
    key_energy: Tensor
    """(num_key_value_heads, pairs), before norm and RoPE."""
    value_directions: Tensor
    """(num_key_value_heads, head_dim, head_dim), of `selection.value_basis`."""
    value_spectrum: Tensor
    """(num_key_value_heads, head_dim), descending."""
    neuron_order: Tensor
    """All neurons, those that go first first, (intermediate_size,), int64."""
    pair_losses: Tensor
    """Predicted loss by the number of pairs kept in every KV head, (pairs + 1,)."""
    value_losses: Tensor
    """Predicted loss by the value dims kept in every KV head, (head_dim + 1,)."""
    width_losses: Tensor
    """Predicted loss by the neurons kept, (intermediate_size + 1,); none: the module is removed."""
    group_order: Tensor
    """KV groups, those that go first first, (num_key_value_heads,), int64."""
    query_order: Tensor
    """Each group's query heads in the same order, counted within the group,
    (num_key_value_heads, group_size), int64."""
    head_losses: Tensor
    """Predicted loss by KV groups kept and query heads kept in each of them,
    (num_key_value_heads + 1, group_size + 1); no heads: the module is removed."""
    head_shares: Tensor
    """Share of the output's energy, in units of loss, that the kept heads hold; as `head_losses`.
    What is cut of heads costs this part of what it costs where all heads stay."""

    @property
    def energies(self) -> HeadEnergies:
        """As the slicing of normed queries and keys wants them."""
        return HeadEnergies(query=self.query_energy, key=self.key_energy)

    def pairs(self, keep: int) -> PairChoice:
        """The rotary pairs that stay, and what the queries do to make up for the others."""
        return eliminate_pairs(self.pair_moment, keep)

    def basis(self, keep: int) -> Tensor:
        """The value basis of each KV group, (num_key_value_heads, head_dim, keep)."""
        return value_basis.leading_basis(self.value_directions, keep)

    def neurons(self, keep: int) -> Tensor:
        """The neurons that stay, ascending, (keep,)."""
        return self.neuron_order[self.neuron_order.shape[0] - keep :].sort().values

    def heads(self, groups: int, queries: int) -> KeptHeads:
        """The heads that stay: so many KV groups, so many query heads in each of them."""
        kept, within = kept_heads(self.group_order, self.query_order, groups, queries)
        return KeptHeads(groups=kept, queries=within)

    def to(self, device: torch.device) -> LayerSensitivity:
        """The same on a device."""
        return replace(self, **{name: part.to(device) for name, part in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class SharedPairsSensitivity(LayerSensitivity):
    """The same of a layer that must keep the rotary pairs that all others keep."""

    pair_order: Tensor
    """All pairs, those that go first first, (pairs,), int64."""

    def pairs(self, keep: int) -> PairChoice:
        """The pairs that stay in every head of the model."""
        kept = self.pair_order[len(self.pair_order) - keep :].sort().values
        return keep_shared_pairs(self.pair_moment, kept)


def with_pairs(
    weights: LayerWeights, choice: PairChoice, settings: LayerSettings, energies: HeadEnergies
) -> LayerWeights:
    """The block with the chosen rotary pairs, its queries turned to make up for the others.

    Where queries are normed before RoPE the turn would have to pass the norm's weights, which it
    does not commute with: there the choice counts and the turn is left out.
    """
    sliced = slicing.slice_rotary_pairs(weights, choice.kept, settings, energies)
    if weights.query_norm is not None:
        return sliced
    query = sliced.query
    bias = None if query.bias is None else turned_queries(query.bias, choice.turns)
    turned = Linear(weight=turned_queries(query.weight, choice.turns), bias=bias)
    return replace(sliced, query=turned)
