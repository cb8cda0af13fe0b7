"""The published method by the letter of docs/method.md: naive, at full size, in float64.

Nothing of the engine is imported. Weights come from the model classes under their own names; heads,
tokens and neurons are walked one by one; what is removed is masked or projected away at full size
and no tensor ever shrinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DAMPING = 0.01
Sequences = list[Tensor]
"""Hidden states, (tokens, width) each."""


@dataclass(frozen=True)
class Projection:
    weight: Tensor
    """(in, out): what stands to the right of a row vector."""
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        out = rows @ self.weight
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True)
class Sizes:
    """What a layer keeps."""

    pairs: int
    value: int
    width: int


@dataclass(frozen=True)
class Compressed:
    """A layer at full size after compression, and how it was chosen."""

    kept_pairs: list[list[int]]
    """By KV head, numbers into `Layer.pairs`."""
    projectors: list[Tensor]
    """`B Bᵀ` of each KV head, (head_dim, head_dim)."""
    kept_neurons: list[int]
    attention_output: Projection
    mlp_output: Projection


class Layer:
    """One dense layer's weights under the names of its own class."""

    def __init__(self, model: Any, number: int) -> None:
        config = model.config
        prefix = f"model.layers.{number}."
        self._own = {
            name.removeprefix(prefix): tensor.double()
            for name, tensor in model.state_dict().items()
            if name.startswith(prefix)
        }
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        rope = config.rope_parameters
        self.theta = rope["rope_theta"]
        self.rotating = int(self.head_dim * (rope.get("partial_rotary_factor") or 1.0))
        self.window = getattr(config, "sliding_window", None) or 10**9
        self.parallel = config.model_type == "phi"
        self.eps = config.layer_norm_eps if self.parallel else config.rms_norm_eps
        self._read_projections(config.model_type, config.intermediate_size)

    def _read_projections(self, kind: str, width: int) -> None:
        queries, keys = self.heads * self.head_dim, self.groups * self.head_dim
        if kind == "phi3":
            rows = self._own["self_attn.qkv_proj.weight"]
            self.q = Projection(rows[:queries].T, None)
            self.k = Projection(rows[queries : queries + keys].T, None)
            self.v = Projection(rows[queries + keys :].T, None)
            both = self._own["mlp.gate_up_proj.weight"]
            self.gate, self.up = Projection(both[:width].T, None), Projection(both[width:].T, None)
        else:
            self.q, self.k, self.v = (self._linear(f"self_attn.{one}_proj") for one in "qkv")
            if kind == "phi":
                self.up = self._linear("mlp.fc1")
            else:
                self.gate, self.up = self._linear("mlp.gate_proj"), self._linear("mlp.up_proj")
        self.o = self._linear("self_attn.dense" if kind == "phi" else "self_attn.o_proj")
        self.down = self._linear("mlp.fc2" if kind == "phi" else "mlp.down_proj")

    def _linear(self, name: str) -> Projection:
        return Projection(self._own[f"{name}.weight"].T, self._own.get(f"{name}.bias"))

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Dimensions that rotate together, then those that do not rotate, two by two."""
        half, still = self.rotating // 2, (self.head_dim - self.rotating) // 2
        rotate = [(one, one + half) for one in range(half)]
        return rotate + [(self.rotating + one, self.rotating + still + one) for one in range(still)]

    # -- the dense mathematics, a row at a time ------------------------------------------------

    def norm(self, rows: Tensor, name: str) -> Tensor:
        """LayerNorm where there is a bias, RMSNorm elsewhere."""
        out = torch.zeros_like(rows)
        bias = self._own.get(f"{name}.bias")
        for place, row in enumerate(rows):
            centred = row if bias is None else row - row.sum() / len(row)
            unit = centred / ((centred * centred).sum() / len(row) + self.eps).sqrt()
            out[place] = self._own[f"{name}.weight"] * unit + (0 if bias is None else bias)
        return out

    def rotated(self, rows: Tensor) -> Tensor:
        """RoPE of one head, (tokens, head_dim)."""
        out = rows.clone()
        for position, row in enumerate(rows):
            for number, (one, other) in enumerate(self.pairs):
                if one >= self.rotating:
                    continue
                angle = position * self.theta ** (-2 * number / self.rotating)
                cos, sin = math.cos(angle), math.sin(angle)
                out[position, one] = row[one] * cos - row[other] * sin
                out[position, other] = row[other] * cos + row[one] * sin
        return out

    def head(self, rows: Tensor, number: int) -> Tensor:
        """Columns of one head."""
        return rows[:, number * self.head_dim : (number + 1) * self.head_dim]

    def group_of(self, head: int) -> int:
        """The KV head that a query head reads."""
        return head // (self.heads // self.groups)

    def queries_and_keys(self, read: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of every head, after RoPE."""
        queries, keys = self.q(read), self.k(read)
        return (
            [self.rotated(self.head(queries, one)) for one in range(self.heads)],
            [self.rotated(self.head(keys, one)) for one in range(self.groups)],
        )

    def attended(self, hidden: Tensor, kept: list[list[int]] | None) -> Tensor:
        """`o` of one sequence, (tokens, heads · head_dim); pairs that are not kept are masked."""
        read = self.norm(hidden, "input_layernorm")
        queries, keys = self.queries_and_keys(read)
        values = self.v(read)
        out = torch.zeros(len(hidden), self.heads * self.head_dim, dtype=torch.float64)
        for number in range(self.heads):
            group = self.group_of(number)
            mask = torch.ones(self.head_dim, dtype=torch.float64)
            if kept is not None:
                mask = self._pair_mask(kept[group])
            query, key, value = queries[number] * mask, keys[group], self.head(values, group)
            for token in range(len(hidden)):
                seen = [one for one in range(token + 1) if token - one < self.window]
                scores = [float(query[token] @ key[one]) / math.sqrt(self.head_dim) for one in seen]
                weights = [math.exp(score - max(scores)) for score in scores]
                mixed = sum(weight * value[one] for weight, one in zip(weights, seen, strict=True))
                self.head(out, number)[token] = mixed / sum(weights)
        return out

    def _pair_mask(self, kept: list[int]) -> Tensor:
        mask = torch.zeros(self.head_dim, dtype=torch.float64)
        for number in kept:
            mask[list(self.pairs[number])] = 1.0
        return mask

    def activated(self, hidden: Tensor) -> Tensor:
        """`u` of one sequence, (tokens, intermediate_size)."""
        read = self.norm(hidden, "input_layernorm" if self.parallel else "post_attention_layernorm")
        up = self.up(read)
        if self.parallel:  # gelu_new
            inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
            return 0.5 * up * (1 + torch.tanh(inner))
        gate = self.gate(read)
        return gate / (1 + torch.exp(-gate)) * up


# -- section 3 and 5 ---------------------------------------------------------------------------


def compress(layer: Layer, sizes: Sizes, streams: Sequences) -> tuple[Compressed, Sequences]:
    """The compressed layer, and the streams behind it."""
    kept = chosen_pairs(layer, sizes.pairs, streams)
    full = [layer.attended(one, None) for one in streams]
    pruned = [layer.attended(one, kept) for one in streams]
    projectors = value_projectors(layer, sizes.value, pruned)
    wide = torch.zeros(layer.heads * layer.head_dim, layer.heads * layer.head_dim).double()
    for head in range(layer.heads):
        here = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        wide[here, here] = projectors[layer.group_of(head)]
    output = refitted(pruned, wide, layer.heads * sizes.value, layer.o, full)
    behind = [one + output(inner @ wide) for one, inner in zip(streams, pruned, strict=True)]

    read = streams if layer.parallel else behind
    inner = [layer.activated(one) for one in read]
    neurons = chosen_neurons(layer, sizes.width, inner)
    mask = torch.zeros(inner[0].shape[1]).double()
    mask[neurons] = 1.0
    down = refitted(inner, torch.diag(mask), sizes.width, layer.down, inner)
    behind = [one + down(u * mask) for one, u in zip(behind, inner, strict=True)]
    return Compressed(kept, projectors, neurons, output, down), behind


def chosen_pairs(layer: Layer, keep: int, streams: Sequences) -> list[list[int]]:
    """3c: `mean|q_j k_j| + mean|q_{j+e/2} k_{j+e/2}|` after RoPE, summed over a group's queries."""
    scores = [[0.0] * len(layer.pairs) for _ in range(layer.groups)]
    for hidden in streams:
        queries, keys = layer.queries_and_keys(layer.norm(hidden, "input_layernorm"))
        for head in range(layer.heads):
            group = layer.group_of(head)
            for number, both in enumerate(layer.pairs):
                for dim in both:
                    product = (queries[head][:, dim] * keys[group][:, dim]).abs()
                    scores[group][number] += float(product.mean()) / len(streams)
    return [best(one, keep) for one in scores]


def best(scores: list[float], keep: int) -> list[int]:
    """Numbers of the largest scores, ascending."""
    ranked = sorted((score, number) for number, score in enumerate(scores))
    return sorted(number for _, number in ranked[len(scores) - keep :])


def value_projectors(layer: Layer, keep: int, inner: Sequences) -> list[Tensor]:
    """3b: onto the top eigenvectors of `S = Σ_h E[o_h o_hᵀ]` over a group's query heads."""
    projectors = []
    for group in range(layer.groups):
        moment = torch.zeros(layer.head_dim, layer.head_dim).double()
        for head in range(layer.heads):
            if layer.group_of(head) == group:
                for rows in inner:
                    for row in layer.head(rows, head):
                        moment += torch.outer(row, row)
        basis = torch.linalg.eigh(moment).eigenvectors[:, -keep:]
        projectors.append(basis @ basis.T)
    return projectors


def chosen_neurons(layer: Layer, keep: int, inner: Sequences) -> list[int]:
    """3a: `H_jj · ‖Wd[j, :]‖²`."""
    rows = torch.cat(inner)
    scores = []
    for neuron in range(rows.shape[1]):
        weight = layer.down.weight[neuron]
        scores.append(float((rows[:, neuron] ** 2).mean() * (weight @ weight)))
    return best(scores, keep)


def refitted(
    inner: Sequences, projector: Tensor, rank: int, output: Projection, whole: Sequences
) -> Projection:
    """5: ridge regression of the un-pruned module's output on the projected activations.

    At full size `P (PᵀHP + λI)⁻¹ PᵀC = (P PᵀHP Pᵀ + λI)⁻¹ P PᵀC`, λ being the damping times the
    mean of the diagonal in the `rank` dimensions that stay. Where the output has a bias a 1 is
    appended, which stays, too.
    """
    rows, wanted = torch.cat(inner) @ projector, output(torch.cat(whole))
    if output.bias is not None:
        rows, rank = torch.cat((rows, torch.ones(len(rows), 1).double()), dim=1), rank + 1
    gram, cross = rows.T @ rows / len(rows), rows.T @ wanted / len(rows)
    damping = DAMPING * gram.trace() / rank
    found = torch.linalg.solve(gram + damping * torch.eye(len(gram)).double(), cross)
    return Projection(found, None) if output.bias is None else Projection(found[:-1], found[-1])
