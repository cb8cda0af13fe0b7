"""Sensitivity of one layer and the selections that follow from it (docs/method.md, section 3).

Orders and bases are measured once on the dense model and do not depend on the ratio
(`sensitivity.measurement`). Only the sizes to keep do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import slicing
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear
from intraslice_core.rotary_statistics import HeadEnergies
from intraslice_core.selection import value_basis
from intraslice_core.selection.heads import kept_heads
from intraslice_core.selection.rotary_pairs import (
    PairChoice,
    eliminate_pairs,
    keep_given_pairs,
    keep_shared_pairs,
    turned_queries,
)
from intraslice_core.selection.score_basis import leading_score_basis


@dataclass(frozen=True, kw_only=True)
class KeptHeads:
    """A rectangle of kept heads."""

    groups: Tensor
    """KV groups, (kept_groups,), ascending, int64."""
    queries: Tensor
    """Query heads within each kept group, (kept_groups, kept_queries), ascending, int64."""

    def columns(self, group_size: int, width: int) -> Tensor:
        """Return the kept heads' columns where every query head has `width` columns.

        Args:
            group_size: query heads of a dense KV group.
            width: columns of a head.
        """
        heads = (self.groups.unsqueeze(-1) * group_size + self.queries).flatten()
        offsets = torch.arange(width, device=heads.device)
        return (heads.unsqueeze(-1) * width + offsets).flatten()


def first_heads(groups: int, queries: int, device: torch.device) -> KeptHeads:
    """Return the first query heads of each of the first KV groups."""
    return KeptHeads(
        groups=torch.arange(groups, device=device),
        queries=torch.arange(queries, device=device).expand(groups, queries),
    )


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """Measured sensitivity of one dense layer; tensors are float64 unless stated otherwise."""

    pair_moment: Tensor
    """Gram matrix of the pairs' features, in units of loss,
    (num_key_value_heads, head_dim, head_dim)."""
    query_energy: Tensor
    """Energies of query pairs before norm and RoPE, (num_attention_heads, pairs)."""
    key_energy: Tensor
    """Energies of key pairs before norm and RoPE, (num_key_value_heads, pairs)."""
    value_directions: Tensor
    """Directions from `value_basis.weighted_directions`,
    (num_key_value_heads, head_dim, head_dim)."""
    value_spectrum: Tensor
    """Squared singular values, descending, (num_key_value_heads, head_dim)."""
    neuron_order: Tensor
    """All neurons, first removed first, (intermediate_size,), int64."""
    pair_losses: Tensor
    """Predicted loss by the number of pairs kept in every KV head, (pairs + 1,)."""
    value_losses: Tensor
    """Predicted loss by the number of value dimensions kept in every KV head, (head_dim + 1,)."""
    width_losses: Tensor
    """Predicted loss by the number of neurons kept, (intermediate_size + 1,).

    Entry 0 is the loss of removing the whole MLP.
    """
    group_order: Tensor
    """KV groups, first removed first, (num_key_value_heads,), int64."""
    query_order: Tensor
    """Query heads of each group, numbered within it, first removed first,
    (num_key_value_heads, group_size), int64."""
    head_losses: Tensor
    """Predicted loss by KV groups kept and query heads kept in each of them,
    (num_key_value_heads + 1, group_size + 1).

    Row and column 0 are the loss of removing the whole attention.
    """
    head_shares: Tensor
    """Share of the output energy, in units of loss, held by the kept heads; as `head_losses`.

    Losses of pairs and value dimensions are multiplied by it: removed heads cannot be cut again.
    """
    query_directions: Tensor | None = None
    """Directions of queries from `score_basis`, (num_key_value_heads, head_dim, head_dim).

    None where pairs are selected: in layers with RoPE or with normed queries and keys.
    """
    key_directions: Tensor | None = None
    """Directions of keys, likewise."""
    value_order: Tensor | None = None
    """Value dimensions as they are, first removed first, (num_key_value_heads, head_dim), int64;
    None unless a method removes them without a new basis."""
    value_costs: Tensor | None = None
    """Predicted loss of each of these removals, of all KV heads together, (head_dim,)."""

    @property
    def energies(self) -> HeadEnergies:
        """Return the energies that slicing of normed queries and keys needs."""
        return HeadEnergies(query=self.query_energy, key=self.key_energy)

    def pairs(self, keep: int) -> PairChoice:
        """Select `keep` rotary pairs of each KV head and the query turns.

        Raises:
            NumericalError: if the pairs' moment is not finite or cannot be factorised.
        """
        return eliminate_pairs(self.pair_moment, keep)

    def queries_and_keys(
        self, weights: LayerWeights, keep: int, settings: LayerSettings
    ) -> tuple[Tensor, LayerWeights]:
        """Cut the queries and keys of a dense layer to the width of `keep` pairs.

        Returns:
            The kept pairs, (num_key_value_heads, keep), and the layer. In another basis there are
            no pairs; the first `keep` numbers stand for them.

        Raises:
            NumericalError: if a moment is not finite or a factorisation fails.
        """
        if self.query_directions is None or self.key_directions is None:
            choice = self.pairs(keep)
            return choice.kept, with_pairs(weights, choice, settings, self.energies)
        basis = leading_score_basis(self.query_directions, self.key_directions, 2 * keep)
        numbers = torch.arange(keep, device=basis.key.device)
        kept = numbers.expand(weights.num_key_value_heads, keep)
        return kept, slicing.project_queries_and_keys(weights, basis.query, basis.key)

    def basis(self, keep: int) -> Tensor:
        """Return the value basis of each KV group, (num_key_value_heads, head_dim, keep)."""
        return value_basis.leading_basis(self.value_directions, keep)

    def neurons(self, keep: int) -> Tensor:
        """Select `keep` neurons; return their indices, ascending, (keep,)."""
        return self.neuron_order[self.neuron_order.shape[0] - keep :].sort().values

    def heads(self, groups: int, queries: int) -> KeptHeads:
        """Select `groups` KV groups and `queries` query heads in each of them."""
        kept_groups, within = kept_heads(self.group_order, self.query_order, groups, queries)
        return KeptHeads(groups=kept_groups, queries=within)

    def to(self, device: torch.device) -> LayerSensitivity:
        """Return the sensitivity with all tensors on `device`."""
        return replace(self, **{name: part.to(device) for name, part in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the layer has, by field."""
        return {name: part for name, part in vars(self).items() if part is not None}


@dataclass(frozen=True, kw_only=True)
class OrderedPairsSensitivity(LayerSensitivity):
    """Sensitivity of a layer whose rotary pairs are removed in an order that is given."""

    pair_order: Tensor
    """Pairs, first removed first, (num_key_value_heads, pairs), int64."""

    def pairs(self, keep: int) -> PairChoice:
        """Return the last `keep` pairs of the order and the query turns.

        Raises:
            NumericalError: if the pairs' moment is not finite or cannot be factorised.
        """
        kept_pairs = self.pair_order[:, self.pair_order.shape[1] - keep :].sort(-1).values
        return keep_given_pairs(self.pair_moment, kept_pairs)


@dataclass(frozen=True, kw_only=True)
class SharedPairsSensitivity(LayerSensitivity):
    """Sensitivity of a layer whose rotary pairs are shared by all layers (target `stock`)."""

    pair_order: Tensor
    """All pairs, first removed first, (pairs,), int64."""

    def pairs(self, keep: int) -> PairChoice:
        """Return the `keep` pairs shared by all heads of the model and this layer's query turns.

        Raises:
            NumericalError: if the pairs' moment is not finite or cannot be factorised.
        """
        kept_pairs = self.pair_order[len(self.pair_order) - keep :].sort().values
        return keep_shared_pairs(self.pair_moment, kept_pairs)


def with_pairs(
    weights: LayerWeights, choice: PairChoice, settings: LayerSettings, energies: HeadEnergies
) -> LayerWeights:
    """Return the layer with the selected rotary pairs, its queries turned to compensate.

    Where queries are normed before RoPE, the turn would have to pass the norm, with which it does
    not commute. There the selection is used without the turn.

    Args:
        weights: dense layer.
        choice: selected pairs and turns.
        settings: of the layer.
        energies: of queries and keys before their norms.
    """
    sliced = slicing.slice_rotary_pairs(weights, choice.kept, settings, energies)
    if weights.query_norm is not None:
        return sliced
    query = sliced.query
    bias = None if query.bias is None else turned_queries(query.bias, choice.turns)
    turned = Linear(weight=turned_queries(query.weight, choice.turns), bias=bias)
    return replace(sliced, query=turned)
