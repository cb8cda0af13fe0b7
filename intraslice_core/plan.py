"""Shapes and parameter counts of dense and sliced models (docs/method.md, section 1).

A `ModelGeometry` has the dense model's dimensions, a `LayerPlan` the sizes that one layer keeps, a
`ModelPlan` those of all layers. Plans are serialised in reports. Nothing here imports torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from intraslice_core.config import FrozenModel


class ModelGeometry(FrozenModel):
    """Dimensions of the dense model; all layers of a supported family have the same.

    A model that was compressed before has the dimensions of its original and `input_layers`.
    """

    num_hidden_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    vocab_size: int = Field(ge=1)
    tie_word_embeddings: bool
    position_rows: int = Field(default=0, ge=0, description="rows of the table of positions")
    mlp_projections: int = Field(default=3, description="matrices of the MLP: 3 gated, 2 plain")
    norms_per_layer: int = Field(default=2, description="1 parallel, 2 usual, 4 with output norms")
    norm_bias: bool = Field(default=False, description="norms have biases")
    qk_norm: bool = Field(default=False, description="queries and keys are normed before RoPE")
    qk_norm_across_heads: bool = Field(default=False, description="one norm for all heads' width")
    attention_bias: bool = Field(default=False, description="q, k and v projections have biases")
    attention_output_bias: bool = False
    mlp_bias: bool = False
    mlp_output_bias: bool = Field(
        default=False, description="the down projection has a bias; implied by mlp_bias"
    )
    lm_head_bias: bool = False
    input_layers: tuple[LayerPlan, ...] = Field(
        default=(), description="shapes of the layers if the input was compressed before"
    )

    @property
    def rotary_pairs(self) -> int:
        """Number of rotary pairs of a head, `head_dim / 2`."""
        return self.head_dim // 2

    @property
    def num_key_value_groups(self) -> int:
        """Number of query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def with_output_biases(self) -> ModelGeometry:
        """Return the same dimensions with biases of both output projections."""
        return self.model_copy(update={"attention_output_bias": True, "mlp_output_bias": True})

    def dense_layer(self) -> LayerPlan:
        """Return the layer plan that removes nothing."""
        return LayerPlan(
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            qk_pairs=self.rotary_pairs,
            v_head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
        )

    def dense_plan(self) -> ModelPlan:
        """Return the model plan that removes nothing from the input."""
        if self.input_layers:
            return ModelPlan(layers=self.input_layers)
        return ModelPlan(layers=(self.dense_layer(),) * self.num_hidden_layers)


class ResidualWidths(FrozenModel):
    """Widths of a sliced residual stream in one layer (method `slicegpt`).

    Both residual connections of the layer carry a matrix, its shortcuts: from the width that the
    attention reads to that which the MLP reads, and from that to the width of the output.
    """

    attention: int = Field(ge=1, description="width that the attention reads")
    mlp: int = Field(ge=1, description="width that the attention writes and the MLP reads")
    output: int = Field(ge=1, description="width of the layer's output, which the MLP writes")

    @property
    def reads_and_writes(self) -> ResidualParts:
        """Return the dimensions that the modules read and write: all of the sliced stream."""
        return ResidualParts(
            attention_reads=self.attention,
            attention_writes=self.mlp,
            mlp_reads=self.mlp,
            mlp_writes=self.output,
        )

    @property
    def attention_shortcut(self) -> int:
        """Return the number of weights of the matrix past the attention."""
        return self.attention * self.mlp

    @property
    def mlp_shortcut(self) -> int:
        """Return the number of weights of the matrix past the MLP."""
        return self.mlp * self.output


class ResidualParts(FrozenModel):
    """Numbers of dimensions of the residual stream that the modules of one layer read and write.

    The stream itself stays whole (method `disp`).
    """

    attention_reads: int = Field(ge=1)
    attention_writes: int = Field(ge=1)
    mlp_reads: int = Field(ge=1)
    mlp_writes: int = Field(ge=1)

    @property
    def by_label(self) -> dict[str, int]:
        """Return the sizes by the names that reports give them."""
        labels = ("attention reads", "attention writes", "MLP reads", "MLP writes")
        sizes = (self.attention_reads, self.attention_writes, self.mlp_reads, self.mlp_writes)
        return dict(zip(labels, sizes, strict=True))


@functools.cache
def _whole_stream(hidden_size: int) -> ResidualParts:
    """Return the numbers of modules that read and write a dense stream; cached for allocators."""
    return ResidualParts(**dict.fromkeys(ResidualParts.model_fields, hidden_size))


class LayerPlan(FrozenModel):
    """Sizes that one layer keeps: the same for all its KV groups, free across layers."""

    num_attention_heads: int = Field(ge=0)
    num_key_value_heads: int = Field(ge=0)
    qk_pairs: int = Field(ge=0, description="rotary pairs kept in every KV group")
    v_head_dim: int = Field(ge=0, description="value dimensions kept in every KV group")
    intermediate_size: int = Field(ge=0)
    residual: ResidualWidths | None = Field(
        default=None, description="widths of a sliced residual stream; null where it is dense"
    )
    residual_parts: ResidualParts | None = Field(
        default=None,
        description="dimensions of the residual stream that the modules read and write; null is "
        "all of them",
    )

    @model_validator(mode="after")
    def _require_one_form_of_the_residual_stream(self) -> Self:
        if self.residual is not None and self.residual_parts is not None:
            raise ValueError("residual and residual_parts exclude each other: set one of them")
        return self

    @property
    def is_removed(self) -> bool:
        """Return whether the layer keeps no module: the result then does not have it."""
        return self.num_attention_heads == 0 and self.intermediate_size == 0

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head, two dimensions per rotary pair."""
        return 2 * self.qk_pairs

    def attention_parameters(self, geometry: ModelGeometry) -> int:
        """Return the number of weights of the q, k, v and o projections, without biases.

        A shortcut counts for the module that it bypasses.
        """
        widths = self.reads_and_writes(geometry)
        queries, groups = self.num_attention_heads, self.num_key_value_heads
        read = queries * self.qk_head_dim + groups * (self.qk_head_dim + self.v_head_dim)
        written = queries * self.v_head_dim
        shortcut = 0 if self.residual is None else self.residual.attention_shortcut
        return widths.attention_reads * read + widths.attention_writes * written + shortcut

    def mlp_parameters(self, geometry: ModelGeometry) -> int:
        """Return the number of weights of the MLP projections, without biases.

        A shortcut counts for the module that it bypasses.
        """
        widths = self.reads_and_writes(geometry)
        rows = (geometry.mlp_projections - 1) * widths.mlp_reads + widths.mlp_writes
        shortcut = 0 if self.residual is None else self.residual.mlp_shortcut
        return rows * self.intermediate_size + shortcut

    def reads_and_writes(self, geometry: ModelGeometry) -> ResidualParts:
        """Return how many dimensions of the residual stream the modules read and write.

        They are parts of the stream, or all of it, whether it is sliced or dense.
        """
        if self.residual_parts is not None:
            return self.residual_parts
        if self.residual is not None:
            return self.residual.reads_and_writes
        return _whole_stream(geometry.hidden_size)

    def parameters(self, geometry: ModelGeometry) -> int:
        """Return the number of compressible weights of the layer."""
        return self.attention_parameters(geometry) + self.mlp_parameters(geometry)


class ModelPlan(FrozenModel):
    """Sizes that every layer keeps; layers without any module are removed."""

    layers: tuple[LayerPlan, ...]

    @property
    def remaining(self) -> tuple[int, ...]:
        """Return the numbers of the layers that the result has, ascending."""
        return tuple(number for number, layer in enumerate(self.layers) if not layer.is_removed)

    @property
    def result_layers(self) -> tuple[LayerPlan, ...]:
        """Return the shapes of the layers that the result has."""
        return tuple(layer for layer in self.layers if not layer.is_removed)

    @property
    def output_layers(self) -> tuple[int, ...]:
        """Return for each layer of the result the dense layer whose output its output replaces.

        It is the last one before the next layer of the result.
        """
        remaining = self.remaining
        return (*(following - 1 for following in remaining[1:]), len(self.layers) - 1)

    @property
    def slices_residual(self) -> bool:
        """Return whether the residual stream is sliced, so that layers have shortcuts."""
        return any(layer.residual is not None for layer in self.layers)

    @property
    def has_residual_parts(self) -> bool:
        """Return whether modules read or write parts of the residual stream."""
        return any(layer.residual_parts is not None for layer in self.layers)

    def residual_sizes(self, layer: LayerPlan, geometry: ModelGeometry) -> dict[str, int]:
        """Return a layer's sizes in the residual stream by the names that reports give them.

        Nothing where all modules read and write the dense stream.
        """
        widths = layer.reads_and_writes(geometry)
        if self.slices_residual:
            return {"residual width": widths.attention_reads}
        return widths.by_label if self.has_residual_parts else {}

    def parameters(self, geometry: ModelGeometry) -> int:
        """Return the number of compressible weights of all layers.

        Where the residual stream is sliced, everything outside the matrices of the layers changes,
        too: embeddings, positions, norms and biases. The change is counted here, so that results
        of one ratio have the same number of parameters with every method.
        """
        layers = sum(layer.parameters(geometry) for layer in self.layers)
        if not self.slices_residual:
            return layers
        dense = geometry.dense_plan()
        return layers + _other_parameters(geometry, self) - _other_parameters(geometry, dense)

    def input_width(self, geometry: ModelGeometry) -> int:
        """Return the width of the first layer's input."""
        residual = self.layers[0].residual if self.layers else None
        return geometry.hidden_size if residual is None else residual.attention

    def removed_fraction(self, geometry: ModelGeometry) -> float:
        """Return the fraction of the dense model's compressible weights that is removed."""
        return 1.0 - self.parameters(geometry) / geometry.dense_plan().parameters(geometry)


def total_parameters(geometry: ModelGeometry, plan: ModelPlan) -> int:
    """Return the number of all weights of the compressed model.

    It counts layers, biases, norms, embeddings, learned positions and an untied output head, as
    stored in the checkpoint, where q/k norms have separate weights for every KV head. Of a sliced
    residual stream it counts the shortcuts and, with tied embeddings, the matrix after the table.
    """
    layers = sum(layer.parameters(geometry) for layer in plan.layers)
    return layers + _other_parameters(geometry, plan)


def _other_parameters(geometry: ModelGeometry, plan: ModelPlan) -> int:
    """Return the number of weights besides the projections and shortcuts of the layers."""
    hidden, first = geometry.hidden_size, plan.input_width(geometry)
    table = geometry.vocab_size * hidden
    if not geometry.tie_word_embeddings:
        table += geometry.vocab_size * first
    elif plan.slices_residual:  # the table stays dense for the head, and a matrix follows it
        table += hidden * first
    positions = geometry.position_rows * first
    final_norm = hidden * (1 + geometry.norm_bias)
    head_bias = geometry.vocab_size * geometry.lm_head_bias
    small = sum(_vector_parameters(geometry, layer) for layer in plan.result_layers)
    return table + positions + final_norm + head_bias + small


def dense_parameters(geometry: ModelGeometry) -> int:
    """Return the number of all weights of the dense model, whose heads share their q/k norms."""
    total = total_parameters(geometry, geometry.dense_plan())
    if geometry.input_layers:
        # A compressed model has separate norms already, and earlier versions kept empty layers.
        empty = (layer for layer in geometry.input_layers if layer.is_removed)
        return total + sum(_vector_parameters(geometry, layer) for layer in empty)
    if not geometry.qk_norm or geometry.qk_norm_across_heads:
        return total
    copies = (geometry.num_key_value_heads - 1) * 2 * geometry.head_dim
    return total - copies * geometry.num_hidden_layers


def _vector_parameters(geometry: ModelGeometry, layer: LayerPlan) -> int:
    """Return the number of norm weights and biases of one layer; removed modules keep norms.

    The norms of a sliced residual stream have no weights.
    """
    hidden, groups = geometry.hidden_size, layer.num_key_value_heads
    widths = layer.reads_and_writes(geometry)
    norms, biases = 0, 0
    if layer.residual is None:
        norms = geometry.norms_per_layer * hidden * (1 + geometry.norm_bias)
    if layer.num_attention_heads:
        qk_rows = (layer.num_attention_heads + groups) * layer.qk_head_dim
        normed = groups + (layer.num_attention_heads if geometry.qk_norm_across_heads else groups)
        norms += normed * layer.qk_head_dim * geometry.qk_norm
        biases += (qk_rows + groups * layer.v_head_dim) * geometry.attention_bias
        biases += widths.attention_writes * geometry.attention_output_bias
    if layer.intermediate_size:
        inner = (geometry.mlp_projections - 1) * layer.intermediate_size
        biases += inner * geometry.mlp_bias
        biases += widths.mlp_writes * (geometry.mlp_bias or geometry.mlp_output_bias)
    return norms + biases


Dimension = Literal["pairs", "value", "width", "heads"]
Module = Literal["attention", "mlp"]
SelectedDimension = Literal[
    "value dims",
    "rotary pairs",
    "MLP neurons",
    "attention reads",
    "attention writes",
    "MLP reads",
    "MLP writes",
]
"""Dimension that a selection has cut; reads and writes are of the residual stream."""

ATTENTION_DIMENSIONS: frozenset[Dimension] = frozenset({"pairs", "value", "heads"})
ALL_DIMENSIONS: frozenset[Dimension] = ATTENTION_DIMENSIONS | {"width"}


@dataclass(frozen=True, kw_only=True)
class ShapeConstraint:
    """Constraints of a target on shapes; the default leaves every layer free."""

    same_across_layers: frozenset[Dimension] = frozenset()
    """Dimensions that have the same size in all layers; `heads` are query and KV heads."""
    multiples: Mapping[Dimension, int] = field(default_factory=lambda: MappingProxyType({}))
    """Required multiple of a kept size, unless it is dense; `heads` counts query heads."""
    qk_equals_value: bool = False
    """Require query/key heads as wide as value heads."""
    value_at_most_qk: bool = True
    """Require value heads no wider than query/key heads: fast kernels crop or reject others."""
    heads_divide_hidden_size: bool = False
    """Require a number of query heads that divides the hidden size, or the dense one."""
    removable: frozenset[Module] = frozenset()
    """Modules that may be removed entirely, regardless of the module cap, if curves offer it."""
    attention_stays_in: frozenset[int] = frozenset()
    """Layers whose attention is never removed."""
    tolerance: float = 0.005
    """Fraction of the budget that may remain unused because no shape fits."""

    def stays_whole(self, dimension: Dimension, dense: int) -> bool:
        """Return whether the dense size is the only one allowed."""
        return self.multiples.get(dimension, 1) > dense

    def allows_heads(self, heads: int, geometry: ModelGeometry) -> bool:
        """Return whether a layer may keep this number of query heads."""
        if heads == geometry.num_attention_heads:
            return True
        if heads % self.multiples.get("heads", 1):
            return False
        return not self.heads_divide_hidden_size or geometry.hidden_size % heads == 0

    def allows_removal(self, module: Module) -> bool:
        """Return whether single layers may lose the module.

        They may not where all layers must have the same size of it.
        """
        dimension: Dimension = "width" if module == "mlp" else "heads"
        return module in self.removable and dimension not in self.same_across_layers


ONLY_DENSE = 2**30
"""Multiple that exceeds every size, so that only the dense size is allowed."""

FREE = ShapeConstraint()
"""No constraints: every layer has its own shapes (target `research`)."""
