"""Naive implementation of the method of arXiv 2602.01975 by docs/method.md, in float64.

It imports nothing of the engine. Weights come from the model classes under their own names. Heads,
tokens and neurons are processed one by one. Removed dimensions are masked or projected away at full
size; no tensor ever shrinks.
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
    """A projection of row vectors."""

    weight: Tensor
    """Right factor of a row vector, (in, out)."""
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        out = rows @ self.weight
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True)
class Sizes:
    """Sizes that a layer keeps."""

    pairs: int
    value: int
    width: int


@dataclass(frozen=True)
class Compressed:
    """A compressed layer at full size, and its selections."""

    kept_pairs: list[list[int]]
    """Indices into `Layer.pairs` by KV head."""
    projectors: list[Tensor]
    """`B Bᵀ` of each KV head, (head_dim, head_dim)."""
    kept_neurons: list[int]
    attention_output: Projection
    mlp_output: Projection


class Layer:
    """Weights of one dense layer under the names of its own class, and its mathematics."""

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
            self.q, self.k, self.v = (self._linear(f"self_attn.{name}_proj") for name in "qkv")
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
        """Return pairs of dimensions that rotate together, then those that do not rotate."""
        half, still = self.rotating // 2, (self.head_dim - self.rotating) // 2
        rotating = [(dim, dim + half) for dim in range(half)]
        first = self.rotating
        return rotating + [(first + dim, first + still + dim) for dim in range(still)]

    # -- the dense mathematics, a row at a time ------------------------------------------------

    def norm(self, rows: Tensor, name: str) -> Tensor:
        """Apply LayerNorm where there is a bias, RMSNorm elsewhere."""
        out = torch.zeros_like(rows)
        bias = self._own.get(f"{name}.bias")
        for position, row in enumerate(rows):
            centred = row if bias is None else row - row.sum() / len(row)
            unit = centred / ((centred * centred).sum() / len(row) + self.eps).sqrt()
            out[position] = self._own[f"{name}.weight"] * unit + (0 if bias is None else bias)
        return out

    def rotated(self, rows: Tensor) -> Tensor:
        """Apply RoPE to one head, (tokens, head_dim)."""
        out = rows.clone()
        for position, row in enumerate(rows):
            for pair, (first, second) in enumerate(self.pairs):
                if first >= self.rotating:
                    continue
                angle = position * self.theta ** (-2 * pair / self.rotating)
                cos, sin = math.cos(angle), math.sin(angle)
                out[position, first] = row[first] * cos - row[second] * sin
                out[position, second] = row[second] * cos + row[first] * sin
        return out

    def head(self, rows: Tensor, number: int) -> Tensor:
        """Return the columns of one head, a view."""
        return rows[:, number * self.head_dim : (number + 1) * self.head_dim]

    def group_of(self, head: int) -> int:
        """Return the KV head of a query head."""
        return head // (self.heads // self.groups)

    def queries_and_keys(self, normed: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return queries and keys of every head after RoPE."""
        queries, keys = self.q(normed), self.k(normed)
        return (
            [self.rotated(self.head(queries, head)) for head in range(self.heads)],
            [self.rotated(self.head(keys, group)) for group in range(self.groups)],
        )

    def attended(self, hidden: Tensor, kept: list[list[int]] | None) -> Tensor:
        """Return `o` of one sequence, (tokens, heads · head_dim), with other pairs masked."""
        normed = self.norm(hidden, "input_layernorm")
        queries, keys = self.queries_and_keys(normed)
        values = self.v(normed)
        out = torch.zeros(len(hidden), self.heads * self.head_dim, dtype=torch.float64)
        for head in range(self.heads):
            group = self.group_of(head)
            mask = torch.ones(self.head_dim, dtype=torch.float64)
            if kept is not None:
                mask = self._pair_mask(kept[group])
            query, key, value = queries[head] * mask, keys[group], self.head(values, group)
            for token in range(len(hidden)):
                visible = [other for other in range(token + 1) if token - other < self.window]
                scores = [
                    float(query[token] @ key[at]) / math.sqrt(self.head_dim) for at in visible
                ]
                weights = [math.exp(score - max(scores)) for score in scores]
                mixed = sum(w * value[at] for w, at in zip(weights, visible, strict=True))
                self.head(out, head)[token] = mixed / sum(weights)
        return out

    def _pair_mask(self, kept: list[int]) -> Tensor:
        mask = torch.zeros(self.head_dim, dtype=torch.float64)
        for number in kept:
            mask[list(self.pairs[number])] = 1.0
        return mask

    def activated(self, hidden: Tensor) -> Tensor:
        """Return `u` of one sequence, (tokens, intermediate_size)."""
        norm = "input_layernorm" if self.parallel else "post_attention_layernorm"
        normed = self.norm(hidden, norm)
        up = self.up(normed)
        if self.parallel:  # gelu_new
            inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
            return 0.5 * up * (1 + torch.tanh(inner))
        gate = self.gate(normed)
        return gate / (1 + torch.exp(-gate)) * up


# -- docs/method.md, sections 3 and 5 ----------------------------------------------------------


def compress(layer: Layer, sizes: Sizes, states: Sequences) -> tuple[Compressed, Sequences]:
    """Return the compressed layer and the hidden states after it."""
    kept_pairs = select_pairs(layer, sizes.pairs, states)
    full = [layer.attended(hidden, None) for hidden in states]
    pruned = [layer.attended(hidden, kept_pairs) for hidden in states]
    projectors = value_projectors(layer, sizes.value, pruned)
    wide = torch.zeros(layer.heads * layer.head_dim, layer.heads * layer.head_dim).double()
    for head in range(layer.heads):
        block = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        wide[block, block] = projectors[layer.group_of(head)]
    output = refitted(pruned, wide, layer.heads * sizes.value, layer.o, full)
    after = [hidden + output(inner @ wide) for hidden, inner in zip(states, pruned, strict=True)]

    mlp_inputs = states if layer.parallel else after
    inner = [layer.activated(hidden) for hidden in mlp_inputs]
    neurons = select_neurons(layer, sizes.width, inner)
    mask = torch.zeros(inner[0].shape[1]).double()
    mask[neurons] = 1.0
    down = refitted(inner, torch.diag(mask), sizes.width, layer.down, inner)
    after = [hidden + down(u * mask) for hidden, u in zip(after, inner, strict=True)]
    return Compressed(kept_pairs, projectors, neurons, output, down), after


def select_pairs(layer: Layer, keep: int, states: Sequences) -> list[list[int]]:
    """Select pairs by `mean|q_j k_j| + mean|q_{j+e/2} k_{j+e/2}|` after RoPE (section 3c)."""
    scores = [[0.0] * len(layer.pairs) for _ in range(layer.groups)]
    for hidden in states:
        queries, keys = layer.queries_and_keys(layer.norm(hidden, "input_layernorm"))
        for head in range(layer.heads):
            group = layer.group_of(head)
            for number, pair in enumerate(layer.pairs):
                for dim in pair:
                    product = (queries[head][:, dim] * keys[group][:, dim]).abs()
                    scores[group][number] += float(product.mean()) / len(states)
    return [best(group_scores, keep) for group_scores in scores]


def best(scores: list[float], keep: int) -> list[int]:
    """Return the indices of the largest scores, ascending."""
    ranked = sorted((score, index) for index, score in enumerate(scores))
    return sorted(index for _, index in ranked[len(scores) - keep :])


def value_projectors(layer: Layer, keep: int, inner: Sequences) -> list[Tensor]:
    """Return projectors on the top eigenvectors of a group's `S = Σ_h E[o_h o_hᵀ]` (3b)."""
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


def select_neurons(layer: Layer, keep: int, inner: Sequences) -> list[int]:
    """Select neurons by `H_jj · ‖Wd[j, :]‖²` (section 3a)."""
    rows = torch.cat(inner)
    scores = []
    for neuron in range(rows.shape[1]):
        weight = layer.down.weight[neuron]
        scores.append(float((rows[:, neuron] ** 2).mean() * (weight @ weight)))
    return best(scores, keep)


def refitted(
    inner: Sequences, projector: Tensor, rank: int, output: Projection, whole: Sequences
) -> Projection:
    """Fit the unpruned module's output to the projected activations by ridge regression (5).

    At full size `P (PᵀHP + λI)⁻¹ PᵀC = (P PᵀHP Pᵀ + λI)⁻¹ P PᵀC`. λ is the damping times the mean
    of the diagonal over the `rank` kept dimensions. Where the output has a bias, a constant 1 is
    appended, which is kept, too.
    """
    rows, target = torch.cat(inner) @ projector, output(torch.cat(whole))
    if output.bias is not None:
        rows, rank = torch.cat((rows, torch.ones(len(rows), 1).double()), dim=1), rank + 1
    gram, cross = rows.T @ rows / len(rows), rows.T @ target / len(rows)
    damping = DAMPING * gram.trace() / rank
    fitted = torch.linalg.solve(gram + damping * torch.eye(len(gram)).double(), cross)
    return Projection(fitted, None) if output.bias is None else Projection(fitted[:-1], fitted[-1])
