"""Shapes, before and after: section 1 of docs/method.md as arithmetic, without torch.

A `ModelGeometry` says what a dense model has, a `LayerPlan` what one layer keeps, a `ModelPlan`
what the whole model keeps. Plans serialise, so a run can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from intraslice_core.config import FrozenModel


class ModelGeometry(FrozenModel):
    """The dense model's dimensions. All layers of the supported families are alike."""

    num_hidden_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    vocab_size: int = Field(ge=1)
    tie_word_embeddings: bool
    mlp_projections: int = Field(default=3, description="matrices of the MLP: 3 gated, 2 plain")
    norms_per_layer: int = Field(default=2, description="1 parallel, 2 usual, 4 with output norms")
    norm_bias: bool = Field(default=False, description="norms are LayerNorms")
    qk_norm: bool = Field(default=False, description="queries and keys are normed")
    attention_bias: bool = Field(default=False, description="of the q, k and v projections")
    attention_output_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False

    @property
    def rotary_pairs(self) -> int:
        """Rotary pairs of a head: `head_dim / 2`."""
        return self.head_dim // 2

    @property
    def num_key_value_groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def dense_layer(self) -> LayerPlan:
        """The plan that removes nothing."""
        return LayerPlan(
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            qk_pairs=self.rotary_pairs,
            v_head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
        )

    def dense_plan(self) -> ModelPlan:
        """The plan that removes nothing from any layer."""
        return ModelPlan(layers=(self.dense_layer(),) * self.num_hidden_layers)


class LayerPlan(FrozenModel):
    """What one layer keeps. Rectangular within the layer, free across layers."""

    num_attention_heads: int = Field(ge=0)
    num_key_value_heads: int = Field(ge=0)
    qk_pairs: int = Field(ge=0, description="rotary pairs kept in every KV group")
    v_head_dim: int = Field(ge=0, description="value dimensions kept in every KV group")
    intermediate_size: int = Field(ge=0)

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head: two dimensions a rotary pair."""
        return 2 * self.qk_pairs

    def attention_parameters(self, geometry: ModelGeometry) -> int:
        """Weights of q, k, v and o projections (biases are not counted)."""
        heads = self.num_attention_heads + self.num_key_value_heads
        return geometry.hidden_size * heads * (self.qk_head_dim + self.v_head_dim)

    def mlp_parameters(self, geometry: ModelGeometry) -> int:
        """Weights of the MLP projections (biases are not counted)."""
        return geometry.mlp_projections * geometry.hidden_size * self.intermediate_size

    def parameters(self, geometry: ModelGeometry) -> int:
        """Compressible weights of the layer."""
        return self.attention_parameters(geometry) + self.mlp_parameters(geometry)


class ModelPlan(FrozenModel):
    """What every layer keeps."""

    layers: tuple[LayerPlan, ...]

    def parameters(self, geometry: ModelGeometry) -> int:
        """Compressible weights of all layers."""
        return sum(layer.parameters(geometry) for layer in self.layers)

    def removed_fraction(self, geometry: ModelGeometry) -> float:
        """Fraction of the dense model's compressible weights that the plan removes."""
        return 1.0 - self.parameters(geometry) / geometry.dense_plan().parameters(geometry)


def total_parameters(geometry: ModelGeometry, plan: ModelPlan) -> int:
    """All weights of the compressed model: layers, biases, norms, embeddings, the untied head.

    Equal to the tensors of its checkpoint, whose q/k norms have a weight for every KV head.
    """
    embeddings = geometry.vocab_size * geometry.hidden_size
    heads = 1 if geometry.tie_word_embeddings else 2
    final_norm = geometry.hidden_size * (1 + geometry.norm_bias)
    head_bias = geometry.vocab_size * geometry.lm_head_bias
    small = sum(_vector_parameters(geometry, layer) for layer in plan.layers)
    return plan.parameters(geometry) + embeddings * heads + final_norm + head_bias + small


def dense_parameters(geometry: ModelGeometry) -> int:
    """All weights of the dense model, whose KV heads share one norm each for queries and keys."""
    total = total_parameters(geometry, geometry.dense_plan())
    copies = (geometry.num_key_value_heads - 1) * 2 * geometry.head_dim
    return total - copies * geometry.num_hidden_layers * geometry.qk_norm


def _vector_parameters(geometry: ModelGeometry, layer: LayerPlan) -> int:
    """Norms and biases of one layer; a removed module leaves its norms behind."""
    hidden, groups = geometry.hidden_size, layer.num_key_value_heads
    norms = geometry.norms_per_layer * hidden * (1 + geometry.norm_bias)
    biases = 0
    if layer.num_attention_heads:
        qk_rows = (layer.num_attention_heads + groups) * layer.qk_head_dim
        norms += 2 * groups * layer.qk_head_dim * geometry.qk_norm
        biases += (qk_rows + groups * layer.v_head_dim) * geometry.attention_bias
        biases += hidden * geometry.attention_output_bias
    if layer.intermediate_size:
        inner = (geometry.mlp_projections - 1) * layer.intermediate_size
        biases += (inner + hidden) * geometry.mlp_bias
    return norms + biases


Dimension = Literal["pairs", "value", "width", "heads"]
Module = Literal["attention", "mlp"]

ATTENTION_DIMENSIONS: frozenset[Dimension] = frozenset({"pairs", "value", "heads"})
ALL_DIMENSIONS: frozenset[Dimension] = ATTENTION_DIMENSIONS | {"width"}


@dataclass(frozen=True, kw_only=True)
class ShapeConstraint:
    """Which shapes are allowed; the default leaves every layer free."""

    same_across_layers: frozenset[Dimension] = frozenset()
    """Dimensions that have one size in the whole model. `heads` are query and KV heads."""
    multiples: Mapping[Dimension, int] = field(default_factory=lambda: MappingProxyType({}))
    """A kept size is a multiple of this, or the dense size; of `heads` the query heads are."""
    qk_equals_value: bool = False
    """Query/key heads are as wide as value heads."""
    value_at_most_qk: bool = True
    """Value heads are no wider than query/key heads: fast kernels crop them, or refuse."""
    removable: frozenset[Module] = frozenset()
    """Modules that may be removed whole, where their curves offer it; the cap allows it then."""
    attention_stays_in: frozenset[int] = frozenset()
    """Layers whose attention is not removed in any case."""
    tolerance: float = 0.005
    """Part of the budget that may be left over, because no shape uses it up."""

    def stays_whole(self, dimension: Dimension, dense: int) -> bool:
        """Whether the dense size is the only one allowed."""
        return self.multiples.get(dimension, 1) > dense

    def allows_removal(self, module: Module) -> bool:
        """A size that all layers share cannot be gone from some of them."""
        shared = self.same_across_layers
        kept = "width" in shared if module == "mlp" else bool(shared & {"heads"})
        return module in self.removable and not kept


ONLY_DENSE = 2**30
"""A multiple that no model has: the dense size is all that is allowed."""

FREE = ShapeConstraint()
"""Every layer has shapes of its own: the `research` target."""
