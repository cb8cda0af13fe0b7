"""Models sliced by explicit indices, and full-size models with zeros in place of the removed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core.modeling import IntraSliceForCausalLM, intraslice_config
from tests.intraslice_core.modeling.dense_families import (
    GROUPS,
    HEADS,
    WIDTH,
    Family,
    Shape,
    Tensors,
    canonical_settings,
    dense_model,
    whole_model,
)

GROUP = HEADS // GROUPS


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Kept indices of a layer; heads count within their KV head, pairs are per kept KV head."""

    groups: tuple[int, ...] = tuple(range(GROUPS))
    heads: tuple[int, ...] = tuple(range(GROUP))
    pairs: tuple[tuple[int, ...], ...]
    values: tuple[int, ...]
    neurons: tuple[int, ...] = tuple(range(WIDTH))

    @property
    def shape(self) -> Shape:
        return Shape(
            num_attention_heads=len(self.groups) * len(self.heads),
            num_key_value_heads=len(self.groups),
            qk_head_dim=2 * len(self.pairs[0]) if self.pairs else 0,
            v_head_dim=len(self.values),
            intermediate_size=len(self.neurons),
        )

    def rows(self, head_dim: int, *, across: bool = False) -> dict[str, tuple[Tensor, int]]:
        """Return the kept indices of every projection and their axis (1 for inputs).

        Args:
            head_dim: of the dense model.
            across: True if queries have one norm for all heads, with weights for each.
        """
        half = head_dim // 2
        query, key, value, output = [], [], [], []
        for group, pairs in zip(self.groups, self.pairs, strict=True):
            columns = [*pairs, *(pair + half for pair in pairs)]
            heads = [group * GROUP + head for head in self.heads]
            query += [head * head_dim + column for head in heads for column in columns]
            output += [head * head_dim + column for head in heads for column in self.values]
            key += [group * head_dim + column for column in columns]
            value += [group * head_dim + column for column in self.values]
        # The norm of the queries is by KV head, unless it is across heads.
        indices = {
            "self_attn.q_proj": (query, 0),
            "self_attn.k_proj": (key, 0),
            "self_attn.v_proj": (value, 0),
            "self_attn.o_proj": (output, 1),
            "self_attn.q_norm": (query if across else key, 0),
            "self_attn.k_norm": (key, 0),
            "mlp.gate_proj": (self.neurons, 0),
            "mlp.up_proj": (self.neurons, 0),
            "mlp.down_proj": (self.neurons, 1),
        }
        return {module: (torch.tensor(kept), axis) for module, (kept, axis) in indices.items()}


def cuts(head_dim: int) -> list[Cut]:
    """Return three layers of different shapes.

    The first has other pairs in each KV head, the second one query head per KV head, and the third
    one KV head.
    """
    even, odd = tuple(range(0, head_dim // 2, 2)), tuple(range(1, head_dim // 2, 2))
    odd = (0, *odd)[: len(even)]
    narrow, wide = tuple(range(0, head_dim, 3)), tuple(range(1, head_dim))
    return [
        Cut(pairs=(even, odd), values=narrow, neurons=tuple(range(1, WIDTH, 2))),
        Cut(heads=(1,), pairs=(odd, odd), values=wide),
        Cut(groups=(1,), pairs=(even,), values=narrow, neurons=tuple(range(8))),
    ]


def whole_layer(head_dim: int) -> Cut:
    pairs = tuple(range(head_dim // 2))
    return Cut(pairs=(pairs,) * GROUPS, values=tuple(range(head_dim)))


def cuts_without_modules(head_dim: int) -> list[Cut]:
    """Return layers of which the first has no attention and the second no MLP."""
    whole, last = whole_layer(head_dim), cuts(head_dim)[0]
    no_attention = Cut(groups=(), pairs=(), values=whole.values)
    return [no_attention, Cut(pairs=whole.pairs, values=whole.values, neurons=()), last]


def sliced_model(family: Family, layers: list[Cut]) -> IntraSliceForCausalLM:
    """Return a model of these shapes with initial weights."""
    config = intraslice_config(
        canonical_settings(family), [cut.shape for cut in layers], [cut.pairs for cut in layers]
    )
    return IntraSliceForCausalLM(config).eval()


def cut_and_masked(
    family: Family, layers: list[Cut]
) -> tuple[IntraSliceForCausalLM, IntraSliceForCausalLM]:
    """Return the sliced model and the full-size model that computes the same."""
    masked_model = whole_model(family, dense_model(family))
    sliced: Tensors = dict(masked_model.state_dict())
    masked = dict(sliced)
    across = bool(family.settings.get("qk_norm_across_heads"))
    for layer, cut in enumerate(layers):
        for module, (kept, axis) in cut.rows(family.head_dim, across=across).items():
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.{module}.{kind}"
                if name not in sliced:
                    continue
                removed = len(kept) == 0
                if removed:
                    masked[name] = torch.zeros_like(masked[name])
                    del sliced[name]
                elif kind == "weight" or axis == 0:
                    sliced[name] = sliced[name].index_select(axis, kept)
                    masked[name] = torch.zeros_like(masked[name]).index_copy(
                        axis, kept, sliced[name]
                    )
    model = sliced_model(family, layers)
    model.load_state_dict(sliced)
    masked_model.load_state_dict(masked)
    return model, masked_model


def cut_model(family: Family, layers: list[Cut] | None = None) -> IntraSliceForCausalLM:
    """Return the family's dense model sliced to three shapes, or to `layers`."""
    return cut_and_masked(family, layers or cuts(family.head_dim))[0]
