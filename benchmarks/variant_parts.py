"""Parts of the method that were tried and not kept; `variants.py` measures them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from intraslice_core import decoder_layer, linalg
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.decoder_layer import LayerWeights, Linear, Norm
from intraslice_core.selection import neurons
from intraslice_core.selection.rotary_pairs import PairChoice
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity

BATCH = 8
CHOICE_DAMPING = 1e-4
NEARLY_EQUAL = 0.25
"""Largest rotation over the calibration context, in radians, of a pair that is mixed."""


# -- other choices by the same shapes ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScoredPairs(LayerSensitivity):
    """Rotary pairs by individual scores, without the query turn."""

    score: Tensor
    """(num_key_value_heads, pairs)."""

    def pairs(self, keep: int) -> PairChoice:
        """Return the pairs of highest score."""
        indices = self.score.topk(keep, dim=-1).indices.sort(dim=-1).values
        return unturned(indices)


@dataclass(frozen=True, kw_only=True)
class UnturnedPairs(LayerSensitivity):
    """Rotary pairs chosen together, without the query turn."""

    def pairs(self, keep: int) -> PairChoice:
        """Return the engine's choice."""
        return unturned(super().pairs(keep).kept)


def unturned(pairs: Tensor) -> PairChoice:
    """Return a choice without query turn."""
    ones = torch.ones(pairs.shape, dtype=linalg.WORKING_DTYPE, device=pairs.device)
    return PairChoice(
        kept=pairs,
        turns=torch.stack((ones, torch.zeros_like(ones)), dim=-1),
        removal_cost=ones[:, :0],
    )


def reinterpret(
    kind: type[LayerSensitivity], sensitivity: LayerSensitivity, **parts: Tensor
) -> LayerSensitivity:
    """Return the same sensitivity under another rule of choice."""
    return kind(
        **{field.name: getattr(sensitivity, field.name) for field in fields(sensitivity)} | parts
    )


# -- statistics of the dense model -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DenseMoments:
    """Statistics of one dense layer."""

    centred: Tensor
    """Pair scores by keys minus their mean over the sequence, (num_key_value_heads, pairs)."""
    causal: Tensor
    """Pair scores by keys minus their mean up to each query, (num_key_value_heads, pairs)."""
    query: Tensor
    """Complex second moments of query pairs before RoPE, (num_key_value_heads, pairs, pairs)."""
    key: Tensor
    """Complex second moments of centred key pairs, (num_key_value_heads, pairs, pairs)."""
    neurons: Tensor
    """(intermediate_size, intermediate_size)."""


def dense_moments(layers: DenseLayers, tokens: Tensor) -> Iterator[DenseMoments]:
    """Yield the statistics of every layer in order."""
    hidden = layers.embed(tokens)
    for layer in range(layers.num_layers):
        sums: dict[str, Tensor] = {}
        for rows in range(0, len(tokens), BATCH):
            batch = hidden[rows : rows + BATCH]
            for name, value in _batch_moments(layers, layer, batch).items():
                sums[name] = sums.get(name, 0) + value
            behind = _behind(layers, layer, batch)
            hidden[rows : rows + BATCH] = behind
        yield DenseMoments(**sums)


def _behind(layers: DenseLayers, layer: int, batch: Tensor) -> Tensor:
    rotary = layers.rotary(layer, batch.shape[1])
    return decoder_layer.forward(batch, layers.weights(layer), layers.settings(layer), rotary)


def _batch_moments(layers: DenseLayers, layer: int, batch: Tensor) -> dict[str, Tensor]:
    weights, settings = layers.weights(layer), layers.settings(layer)
    rotary = layers.rotary(layer, batch.shape[1])
    normed = decoder_layer.attention_inputs(batch, weights, settings)
    bare = [part.float() for part in decoder_layer.queries_and_keys(normed, weights)]
    turned = decoder_layer.rotated_queries_and_keys(normed, weights, settings, rotary)
    query, key = (part.float() for part in turned)
    groups = weights.num_key_value_heads
    queries = _by_group(query, groups)
    centred = key - key.mean(2, keepdim=True)
    between = batch + decoder_layer.attention(batch, weights, settings, rotary)
    inner = decoder_layer.mlp_inner(between, weights, settings).flatten(0, 1).float()
    return {
        "centred": _pairs(queries.square().sum((0, 2, 3))) * _pairs(centred.square().sum((0, 2))),
        "causal": _causal(queries, key),
        "query": _complex_moment(_by_group(bare[0], groups)),
        "key": _complex_moment((bare[1] - bare[1].mean(2, keepdim=True)).unsqueeze(2)),
        "neurons": (inner.mT @ inner).double(),
    }


def _by_group(query: Tensor, groups: int) -> Tensor:
    """(batch, groups, queries of a group, sequence, head_dim)."""
    return query.unflatten(1, (groups, -1))


def _pairs(per_dimension: Tensor) -> Tensor:
    """(…, head_dim) to (…, pairs)."""
    return per_dimension.unflatten(-1, (2, -1)).sum(-2)


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """`E‖q_i‖² · E‖k_j - mean(k_0…k_i)‖²` over j ≤ i, by running sums; (groups, pairs)."""
    seen = torch.arange(1, key.shape[2] + 1, dtype=key.dtype, device=key.device).unsqueeze(-1)
    mean = key.cumsum(2) / seen
    spread = _pairs(key.square().cumsum(2) / seen - mean.square())
    energy = _pairs(query.square().sum(2))
    return (energy * spread).sum((0, 2))


def _complex_moment(heads: Tensor) -> Tensor:
    """(batch, groups, n, sequence, head_dim) to (groups, pairs, pairs), complex."""
    pairs = torch.complex(*heads.chunk(2, dim=-1)).transpose(0, 1).flatten(1, 3)
    return (pairs.mT @ pairs.conj()).to(torch.complex128)


# -- neurons by their bare output --------------------------------------------------------------


def bare_neuron_order(moments: DenseMoments, weights: LayerWeights) -> Tensor:
    """Order neurons by Optimal Brain Surgeon on the squared output error, first removed first."""
    factor = linalg.damped_cholesky(moments.neurons, CHOICE_DAMPING)
    output = weights.mlp_output.weight.mT.double()
    choice = neurons.eliminate_neurons(factor, output, 1)
    return torch.cat((choice.removal_order, choice.kept))


# -- pairs of nearly equal frequency -----------------------------------------------------------


def mixed_by_complex_pca(
    weights: LayerWeights, moments: DenseMoments, frequencies: Tensor, context: int
) -> LayerWeights:
    """Balance the slow pairs of queries and keys: uncorrelated, with equal energy in both.

    Multiplying q by `Tᴴ` and k by `T⁻¹` leaves scores unchanged where pairs do not rotate. Every
    mixed pair then rotates by its own frequency, which is the error of the approximation.

    Args:
        weights: dense, without biases or norms of queries and keys.
        moments: of the layer.
        frequencies: radians a position, (pairs,), descending.
        context: positions.
    """
    slow = (frequencies * context < NEARLY_EQUAL).nonzero().flatten()
    transforms = [
        _balancing(query[slow][:, slow], key[slow][:, slow])
        for query, key in zip(moments.query, moments.key, strict=True)
    ]
    transform = torch.stack(transforms)
    group = weights.num_attention_heads // weights.num_key_value_heads
    return replace(
        weights,
        query=_mixed(weights.query, transform.repeat_interleave(group, 0).mH, slow),
        key=_mixed(weights.key, torch.linalg.inv(transform), slow),
    )


def _balancing(query: Tensor, key: Tensor) -> Tensor:
    """Return T with `Tᴴ·query·T = T⁻¹·key·T⁻ᴴ`, diagonal: balanced truncation's."""
    ridge = torch.eye(len(query), dtype=query.dtype) * 1e-6
    lower = torch.linalg.cholesky(query + ridge * query.diagonal().real.mean())
    values, vectors = torch.linalg.eigh(lower.mH @ key @ lower)
    roots = values.clamp_min(1e-30).pow(0.25).to(vectors.dtype)
    return torch.linalg.solve(lower.mH, vectors * roots)


def _mixed(linear: Linear, transform: Tensor, slow: Tensor) -> Linear:
    """Return the projection with rows of slow pairs multiplied by (heads, slow, slow)."""
    rows = linear.weight.double().unflatten(0, (len(transform), 2, -1)).clone()
    values = transform @ torch.complex(rows[:, 0, slow], rows[:, 1, slow])
    rows[:, 0, slow], rows[:, 1, slow] = values.real, values.imag
    return Linear(weight=rows.flatten(0, 2).to(linear.weight.dtype))


# -- biases of the output projections ----------------------------------------------------------


def with_zero_biases(weights: LayerWeights) -> LayerWeights:
    """Return the same layer with biases of zero on both output projections, where it has none.

    The refit then fits them: a constant is one of its regressors (docs/method.md, section 2).
    """

    def biased(output: Linear) -> Linear:
        if output.bias is not None:
            return output
        return replace(output, bias=output.weight.new_zeros(len(output.weight)))

    return replace(
        weights,
        attention_output=biased(weights.attention_output),
        mlp_output=biased(weights.mlp_output),
    )


# -- refinement of a whole layer ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Adam on all weights of a sliced layer, in float32, against the dense hidden states."""

    learning_rate: float = 1e-3
    """Relative to each tensor's root mean square."""
    epochs: int = 1
    batch: int = 4

    def __call__(
        self, weights: LayerWeights, layers: DenseLayers, layer: int, before: Tensor, target: Tensor
    ) -> LayerWeights:
        """Return refined weights.

        Args:
            weights: sliced and refitted.
            layers: the dense model.
            layer: its index.
            before: the compressed hidden states before the layer.
            target: the dense hidden states after the layer.
        """
        places = _parameters(weights)
        masters = [_at(weights, place).float().clone().requires_grad_() for place in places]
        rates = [
            self.learning_rate * float(master.detach().square().mean().sqrt()) for master in masters
        ]
        groups = [
            {"params": [master], "lr": rate} for master, rate in zip(masters, rates, strict=True)
        ]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.95))
        steps = self.epochs * -(-len(before) // self.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step, steps))
        settings, rotary = layers.settings(layer), layers.rotary(layer, before.shape[1])
        with torch.enable_grad():
            for rows in (order for _ in range(self.epochs) for order in self._orders(len(before))):
                trial = _with(weights, places, [master.to(before.dtype) for master in masters])
                behind = decoder_layer.forward(before[rows], trial, settings, rotary).float()
                wanted = target[rows].float()
                error = (behind - wanted).square().mean(-1) / wanted.square().mean(-1)
                adam.zero_grad()
                error.mean().backward()  # type: ignore[no-untyped-call]
                adam.step()
                schedule.step()
        return _with(weights, places, [master.detach().to(before.dtype) for master in masters])

    def _orders(self, samples: int) -> Sequence[Tensor]:
        return torch.randperm(samples).split(self.batch)


def _rate(step: int, steps: int) -> float:
    """Return the learning rate factor: eight steps of warm-up, then half a cosine."""
    return min(1.0, (step + 1) / 8) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _parameters(weights: LayerWeights) -> list[tuple[str, str]]:
    """Return part and name of every trainable tensor."""
    places = []
    for field in fields(weights):
        part = getattr(weights, field.name)
        if isinstance(part, Linear | Norm):
            places += [(field.name, name) for name in ("weight", "bias") if _has(part, name)]
    return places


def _has(part: Linear | Norm, name: str) -> bool:
    return getattr(part, name) is not None


def _at(weights: LayerWeights, place: tuple[str, str]) -> Tensor:
    tensor: Tensor = getattr(getattr(weights, place[0]), place[1])
    return tensor


def _with(
    weights: LayerWeights, places: Sequence[tuple[str, str]], tensors: Sequence[Tensor]
) -> LayerWeights:
    parts: dict[str, dict[str, Tensor]] = {}
    for (part, name), tensor in zip(places, tensors, strict=True):
        parts.setdefault(part, {})[name] = tensor
    changed = {part: replace(getattr(weights, part), **new) for part, new in parts.items()}
    return replace(weights, **changed)
