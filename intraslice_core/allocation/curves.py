"""What the engine has measured: how much loss each size of each module is predicted to cost.

A layer offers an attention module and an MLP. Attention has three curves whose losses add up and
whose sizes multiply: a module with `H` query and `K` key/value heads, `p` rotary pairs and `r`
value dims has `hidden_size · (H + K) · (2p + r)` parameters. Heads go first: what is cut of the
others costs their share of what it costs in all heads. All sizes are rounding steps, or the dense
size, which need not be one.
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
    """What every layer keeps, and its price."""

    plan: ModelPlan
    prices: tuple[LayerLosses, ...]

    @property
    def predicted_loss(self) -> float:
        """Of all modules together."""
        return sum(price.attention + price.mlp for price in self.layer_losses)


Sizes = NDArray[np.int64]
Losses = NDArray[np.float64]


def rounding_steps(dense: int, step: int, *, removable: bool = False) -> Sizes:
    """Sizes that may be kept, ascending: multiples of `step`, the dense size, and 0 if allowed."""
    multiples = np.arange(0 if removable else step, dense, step, dtype=np.int64)
    return np.append(multiples, np.int64(dense))


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Predicted loss increase by the size that one dimension keeps.

    Args:
        sizes: strictly ascending, the dense size last.
        losses: finite, one a size. A larger size never costs more: where a measurement says so,
            it is noise, and the smaller size's loss counts for both.

    Raises:
        ValueError: if the arrays do not fit together, or a loss is not finite.
    """

    sizes: Sizes
    losses: Losses

    def __post_init__(self) -> None:
        sizes = np.asarray(self.sizes, dtype=np.int64)
        losses = np.asarray(self.losses, dtype=np.float64)
        if sizes.ndim != 1 or sizes.shape != losses.shape or not sizes.size:
            raise ValueError(f"{sizes.shape} sizes and {losses.shape} losses are no curve")
        if sizes[0] < 0 or not (np.diff(sizes) > 0).all():
            raise ValueError("sizes must ascend from 0 or more")
        if not np.isfinite(losses).all():
            raise ValueError("a predicted loss is NaN or infinite")
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "losses", np.minimum.accumulate(losses))

    @property
    def dense(self) -> int:
        """The size that removes nothing."""
        return int(self.sizes[-1])

    @classmethod
    def from_losses(cls, losses: Losses, step: int, *, removable: bool = False) -> Curve:
        """From the loss of every size, (dense + 1,), by the number kept; only steps are taken."""
        every = np.asarray(losses, dtype=np.float64)
        sizes = rounding_steps(len(every) - 1, step, removable=removable)
        return cls(sizes=sizes, losses=every[sizes])

    @classmethod
    def from_scores(cls, scores: Losses, step: int, *, removable: bool = False) -> Curve:
        """From what each item is worth, (dense,): the weakest go first and cost their sum."""
        weakest_first = np.sort(np.asarray(scores, dtype=np.float64))
        removed = np.concatenate([[0.0], np.cumsum(weakest_first)])
        return cls.from_losses(removed[::-1], step, removable=removable)


@dataclass(frozen=True, kw_only=True)
class HeadOption:
    """So many query heads in each of so many KV groups; no groups: the module is removed.

    The loss of a removal is that of the whole module: no other curve adds to it.
    """

    heads_per_group: int
    groups: int
    loss: float
    share: float = 1.0
    """Part of the losses of pairs and value dims that is left, where these heads are: what is gone
    cannot be cut again."""

    def __post_init__(self) -> None:
        if (self.heads_per_group == 0) != (self.groups == 0) or min(
            self.heads_per_group, self.groups
        ) < 0:
            raise ValueError(f"{self.heads_per_group} heads in {self.groups} groups are no module")
        if not np.isfinite(self.loss):
            raise ValueError("a predicted loss is NaN or infinite")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"{self.share} is no share")

    @property
    def removed(self) -> bool:
        """Whether nothing is left of the module."""
        return self.groups == 0

    @property
    def query_heads(self) -> int:
        """Of all groups."""
        return self.heads_per_group * self.groups


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionCurves:
    """Rotary pairs, value dims and heads of one layer; their losses add up.

    Those of pairs and value dims are multiplied by the heads' share.
    """

    pairs: Curve
    values: Curve
    heads: tuple[HeadOption, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCurves:
    """What one layer offers; `widths` are those of its MLP, 0 removes it."""

    attention: AttentionCurves
    widths: Curve


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelCurves:
    """What all layers offer, in their order. All have the same sizes, with losses of their own.

    Raises:
        ValueError: if layers differ in what they offer, or lack the dense size.
    """

    geometry: ModelGeometry
    layers: tuple[LayerCurves, ...]

    def __post_init__(self) -> None:
        geometry = self.geometry
        if len(self.layers) != geometry.num_hidden_layers:
            raise ValueError(f"{len(self.layers)} layers of {geometry.num_hidden_layers} measured")
        first = self.layers[0]
        dense = (first.attention.pairs.dense, first.attention.values.dense, first.widths.dense)
        if dense != (geometry.rotary_pairs, geometry.head_dim, geometry.intermediate_size):
            raise ValueError(f"the largest sizes {dense} are not the dense model's")
        whole = (geometry.num_key_value_groups, geometry.num_key_value_heads)
        if whole not in _head_shapes(first):
            raise ValueError("keeping all heads is not among the options")
        if any(not _alike(first, layer) for layer in self.layers):
            raise ValueError("layers must offer the same sizes")


def all_heads(geometry: ModelGeometry) -> tuple[HeadOption, ...]:
    """The one option of an allocator that leaves heads alone."""
    return (
        HeadOption(
            heads_per_group=geometry.num_key_value_groups,
            groups=geometry.num_key_value_heads,
            loss=0.0,
        ),
    )


def pair_curve(losses: Losses, round_to: int) -> Curve:
    """From the loss of every number of rotary pairs kept, (pairs + 1,)."""
    return Curve.from_losses(losses, pair_step(round_to))


def _head_shapes(layer: LayerCurves) -> list[tuple[int, int]]:
    return [(option.heads_per_group, option.groups) for option in layer.attention.heads]


def _alike(one: LayerCurves, other: LayerCurves) -> bool:
    return _head_shapes(one) == _head_shapes(other) and all(
        np.array_equal(mine.sizes, yours.sizes)
        for mine, yours in (
            (one.attention.pairs, other.attention.pairs),
            (one.attention.values, other.attention.values),
            (one.widths, other.widths),
        )
    )
