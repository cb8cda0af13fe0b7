"""Curves of predicted loss by the size that is kept (docs/method.md, sections 3 and 4).

Attention has three curves (pairs, value dimensions, heads) whose losses add up and whose sizes
multiply: with `H` query heads, `K` key/value heads, `p` rotary pairs and `r` value dimensions there
are `hidden_size · (H + K) · (2p + r)` parameters. Removed heads cannot be cut again, so losses of
pairs and value dimensions are multiplied by the share of the kept heads. All sizes are multiples of
the rounding step or the dense size, which need not be one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intraslice_core.allocation.budget import pair_step
from intraslice_core.plan import ModelGeometry, ModelPlan


@dataclass(frozen=True, kw_only=True)
class LayerLosses:
    """Predicted loss increase of one layer's modules, in the unit of the curves."""

    attention: float
    mlp: float


@dataclass(frozen=True, kw_only=True)
class ScoredPlan:
    """A plan and its predicted losses."""

    plan: ModelPlan
    layer_losses: tuple[LayerLosses, ...]
    """Predicted losses of every layer, in order."""
    extra_loss: float | None = None
    """Predicted loss of preferring fast shapes, in nats per token; None without the preference."""

    @property
    def predicted_loss(self) -> float:
        """Return the predicted loss of all modules together."""
        return sum(losses.attention + losses.mlp for losses in self.layer_losses)


Sizes = NDArray[np.int64]
"""Sizes or numbers of parameters."""
Losses = NDArray[np.float64]
"""Predicted losses or scores."""


def rounding_steps(dense: int, step: int, *, removable: bool = False) -> Sizes:
    """Return the allowed sizes, ascending: multiples of `step`, dense, and 0 if `removable`."""
    multiples = np.arange(0 if removable else step, dense, step, dtype=np.int64)
    return np.append(multiples, np.int64(dense))


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Predicted loss increase by the size that one dimension keeps.

    Args:
        sizes: strictly ascending, the dense size last, (n,).
        losses: finite, (n,). If a larger size has more loss than a smaller one, that is noise, and
            the smaller size's loss is used for both.

    Raises:
        ValueError: if the arrays do not match or a loss is not finite.
    """

    sizes: Sizes
    losses: Losses

    def __post_init__(self) -> None:
        sizes = np.asarray(self.sizes, dtype=np.int64)
        losses = np.asarray(self.losses, dtype=np.float64)
        if sizes.ndim != 1 or sizes.shape != losses.shape or not sizes.size:
            raise ValueError(
                f"sizes of shape {sizes.shape} and losses of shape {losses.shape} are no curve"
            )
        if sizes[0] < 0 or not (np.diff(sizes) > 0).all():
            raise ValueError("sizes must be strictly ascending and not negative")
        if not np.isfinite(losses).all():
            raise ValueError("a predicted loss is NaN or infinite")
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "losses", np.minimum.accumulate(losses))

    @property
    def dense(self) -> int:
        """Return the dense size."""
        return int(self.sizes[-1])

    @classmethod
    def from_losses(cls, losses: Losses, step: int, *, removable: bool = False) -> Curve:
        """Make a curve of rounding steps from the losses of all sizes, (dense + 1,)."""
        by_size = np.asarray(losses, dtype=np.float64)
        sizes = rounding_steps(len(by_size) - 1, step, removable=removable)
        return cls(sizes=sizes, losses=by_size[sizes])

    @classmethod
    def from_scores(cls, scores: Losses, step: int, *, removable: bool = False) -> Curve:
        """Make a curve from item scores, (dense,): the lowest are removed first at their sum."""
        weakest_first = np.sort(np.asarray(scores, dtype=np.float64))
        removed = np.concatenate([[0.0], np.cumsum(weakest_first)])
        return cls.from_losses(removed[::-1], step, removable=removable)


@dataclass(frozen=True, kw_only=True)
class HeadOption:
    """A rectangle of heads: query heads in each KV group, and KV groups.

    0 groups mean that the module is removed; `loss` is then that of the whole module, and no other
    curve adds to it.

    Raises:
        ValueError: if only one of the numbers is 0, one is negative, or a value is out of range.
    """

    heads_per_group: int
    groups: int
    loss: float
    share: float = 1.0
    """Factor on the losses of pairs and value dimensions, from 0 to 1."""

    def __post_init__(self) -> None:
        if (self.heads_per_group == 0) != (self.groups == 0) or min(
            self.heads_per_group, self.groups
        ) < 0:
            raise ValueError(
                f"{self.heads_per_group} heads in each of {self.groups} groups is not allowed: "
                "both must be positive, or both 0"
            )
        if not np.isfinite(self.loss):
            raise ValueError("a predicted loss is NaN or infinite")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"the share {self.share} is not in [0, 1]")

    @property
    def removed(self) -> bool:
        """Return whether the module is removed."""
        return self.groups == 0

    @property
    def query_heads(self) -> int:
        """Return the number of query heads of all groups."""
        return self.heads_per_group * self.groups


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionCurves:
    """Curves of a layer's rotary pairs, value dimensions and heads.

    The losses add up; those of pairs and value dimensions are multiplied by the heads' share.
    """

    pairs: Curve
    values: Curve
    heads: tuple[HeadOption, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCurves:
    """Curves of one layer."""

    attention: AttentionCurves
    widths: Curve
    """Curve of the MLP width; size 0 removes the MLP."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelCurves:
    """Curves of all layers, in order; all layers have the same sizes.

    Raises:
        ValueError: if layers have different sizes or lack the dense size.
    """

    geometry: ModelGeometry
    layers: tuple[LayerCurves, ...]

    def __post_init__(self) -> None:
        geometry = self.geometry
        if len(self.layers) != geometry.num_hidden_layers:
            raise ValueError(
                f"curves of {len(self.layers)} layers, the model has {geometry.num_hidden_layers}"
            )
        first = self.layers[0]
        dense = (first.attention.pairs.dense, first.attention.values.dense, first.widths.dense)
        if dense != (geometry.rotary_pairs, geometry.head_dim, geometry.intermediate_size):
            raise ValueError(f"the largest sizes {dense} are not the dense model's")
        whole = (geometry.num_key_value_groups, geometry.num_key_value_heads)
        if whole not in _head_shapes(first):
            raise ValueError("no option keeps all heads")
        if any(not _have_same_sizes(first, layer) for layer in self.layers):
            raise ValueError("all layers must have the same sizes")


def all_heads(geometry: ModelGeometry) -> tuple[HeadOption, ...]:
    """Return the single option of an allocator that removes no heads."""
    return (
        HeadOption(
            heads_per_group=geometry.num_key_value_groups,
            groups=geometry.num_key_value_heads,
            loss=0.0,
        ),
    )


def pair_curve(losses: Losses, round_to: int) -> Curve:
    """Make the curve of rotary pairs from the losses by the number kept, (pairs + 1,)."""
    return Curve.from_losses(losses, pair_step(round_to))


def _head_shapes(layer: LayerCurves) -> list[tuple[int, int]]:
    """Return the head options as (query heads per group, groups)."""
    return [(option.heads_per_group, option.groups) for option in layer.attention.heads]


def _have_same_sizes(first: LayerCurves, second: LayerCurves) -> bool:
    """Return whether two layers have the same sizes in all curves."""
    return _head_shapes(first) == _head_shapes(second) and all(
        np.array_equal(curve.sizes, other.sizes)
        for curve, other in (
            (first.attention.pairs, second.attention.pairs),
            (first.attention.values, second.attention.values),
            (first.widths, second.widths),
        )
    )
