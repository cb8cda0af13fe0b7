"""Streamed second moments of activations (docs/method.md, section 2).

An accumulator takes one batch at a time and keeps only sums. Products within a batch are computed
in float32 or float64 and added up in float64, so that the split into batches does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intraslice_core.errors import NumericalError
from intraslice_core.linalg import WORKING_DTYPE

_PANELS = 6
"""Number of row panels of a Gram matrix, each computed up to the diagonal.

With 6 panels, 7/12 of the products remain; measured at 0.6 of the time for 1,536 columns of
bfloat16.
"""
_MIN_PANEL_WIDTH = 128


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == WORKING_DTYPE else tensor.to(torch.float32)


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Allow float32 matrix products to use bfloat16 factors with float32 sums."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def second_moment_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return `Σ_t l_t r_tᵀ` over tokens, (n, m), float32, or float64 of float64 inputs.

    bfloat16 inputs are multiplied as bfloat16: the products are exact, and with bfloat16 units
    several times faster (1,260 against 360 GFLOPS on two cores with AMX).

    Args:
        left: (tokens, n).
        right: (tokens, m). If it is the same object as `left`, only one triangle is computed.
    """
    if left.dtype == right.dtype == torch.bfloat16:
        with _bfloat16_products():
            return _products(left, right)
    return _products(left, right)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Compute `second_moment_sum`; of a Gram matrix compute one triangle and mirror it."""
    wide, width = _wide(left), left.shape[1]
    if left is not right:
        return wide.mT @ _wide(right)
    gram = wide.new_empty(width, width)
    step = max(-(-width // _PANELS), _MIN_PANEL_WIDTH)
    for start in range(0, width, step):
        end = min(start + step, width)
        panel = wide[:, start:end].mT @ wide[:, :end]
        gram[start:end, :end] = panel
        gram[:start, start:end] = panel[:, :start].mT
    return gram


def prefix_scale(stream: Tensor, prefix_length: int) -> Tensor | None:
    """Return the factor of every position in second moments; None without prefix.

    At the prefix the hidden states of many models have 10² to 10⁴ times the energy of the others.
    Every later norm divides by it, so that only relative errors matter: positions of the prefix are
    scaled as if their hidden state had the energy of the others (docs/method.md, section 2). They
    are not left out, because what makes their hidden states long has to be kept: the other
    positions attend to them.

    Args:
        stream: hidden states after the module, (batch, sequence, hidden_size).
        prefix_length: positions of the prefix at the beginning of every sequence.

    Returns:
        (batch, sequence, 1), float32, in (0, 1]: 1 after the prefix.
    """
    if prefix_length == 0:
        return None
    energy = stream.float().square().sum(-1, keepdim=True)
    typical = energy[:, prefix_length:].mean(1, keepdim=True)
    scale = torch.ones_like(energy)
    ratio = typical / energy[:, :prefix_length].clamp_min(torch.finfo(torch.float32).tiny)
    scale[:, :prefix_length] = ratio.clamp(max=1.0).sqrt()
    return scale


def scaled(activations: Tensor, scale: Tensor | None) -> Tensor:
    """Return activations, (batch, sequence, width), times `prefix_scale`, in their dtype."""
    return activations if scale is None else (activations * scale).to(activations.dtype)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Second moments of an inner activation `z` and a target `y`, averaged over tokens."""

    gram: Tensor
    """`E[z zᵀ]`, (width, width), float64."""
    cross: Tensor
    """`E[z yᵀ]`, (width, hidden_size), float64."""
    correction: Tensor
    """`E[z (target - y)ᵀ]`, (width, hidden_size), float64: zero where the target is `y`."""
    energy: float
    """`E‖target‖²`."""
    tokens: int
    """Number of tokens averaged over."""

    def __add__(self, other: Moments) -> Moments:
        """Return the moments over the tokens of both."""
        total = self.tokens + other.tokens
        share, other_share = self.tokens / total, other.tokens / total
        return Moments(
            gram=share * self.gram + other_share * other.gram,
            cross=share * self.cross + other_share * other.cross,
            correction=share * self.correction + other_share * other.correction,
            energy=share * self.energy + other_share * other.energy,
            tokens=total,
        )


@dataclass(kw_only=True)
class MomentAccumulator:
    """Accumulator of `Moments`."""

    width: int
    """Width of the inner activation `z`."""
    hidden_size: int
    """Width of the module's output."""
    device: torch.device
    own_is_linear: bool = False
    """Flag for a module whose own output is a projection of `z` itself.

    Its cross moment then follows exactly from the Gram matrix and is not accumulated.
    """
    _gram: Tensor = field(init=False)
    _cross: Tensor = field(init=False)
    _correction: Tensor = field(init=False)
    _energy: float = field(init=False, default=0.0)
    _tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._gram = torch.zeros(self.width, self.width, dtype=WORKING_DTYPE, device=self.device)
        self._cross = self._gram.new_zeros(self.width, self.hidden_size)
        self._correction = torch.zeros_like(self._cross)

    def add(self, inner: Tensor, own: Tensor, correction: Tensor | None) -> None:
        """Add one batch.

        Args:
            inner: inner activation `z`, (tokens, width).
            own: output `y` of the unpruned module, (tokens, hidden_size).
            correction: target minus `own`, (tokens, hidden_size), or None if they are equal.

        Raises:
            NumericalError: if an activation is not finite.
        """
        self._gram += second_moment_sum(inner, inner)
        if not self.own_is_linear:
            self._cross += second_moment_sum(inner, own)
        target = _wide(own)
        if correction is not None:
            self._correction += second_moment_sum(inner, correction)
            target = target + _wide(correction)
        energy = float(target.square().sum(dtype=WORKING_DTYPE))
        # One non-finite activation makes the trace non-finite, so checking the sums is enough.
        if not torch.isfinite(self._gram.diagonal()).all() or energy != energy:
            raise NumericalError("an activation is NaN or infinite")
        self._energy += energy
        self._tokens += inner.shape[0]

    def moments(self, output: Tensor) -> Moments:
        """Return averages over all tokens so far.

        Args:
            output: dense output projection, (width, hidden_size), float64; used only with
                `own_is_linear`.

        Raises:
            NumericalError: if no tokens were added.
        """
        if self._tokens == 0:
            raise NumericalError("no tokens were seen")
        gram = self._gram / self._tokens
        return Moments(
            gram=gram,
            cross=gram @ output if self.own_is_linear else self._cross / self._tokens,
            correction=self._correction / self._tokens,
            energy=self._energy / self._tokens,
            tokens=self._tokens,
        )


@dataclass(frozen=True, kw_only=True)
class RotaryStatistics:
    """Statistics for scores of rotary pairs: means over tokens, summed over a group's queries.

    Each is (num_key_value_heads, pairs), float64.
    """

    query_energy: Tensor
    """`Σ_h E‖q_pair‖²`."""
    centered_key_energy: Tensor
    """`E‖k_pair - mean over the sequence's keys‖²`, after RoPE."""
    product: Tensor
    """`Σ_h mean|q_j k_j| + mean|q_{j+e/2} k_{j+e/2}|` after RoPE (arXiv 2602.01975)."""


@dataclass(frozen=True, kw_only=True)
class HeadEnergies:
    """`E‖pair‖²` of queries and keys before norm and RoPE, float64."""

    query: Tensor
    """(num_attention_heads, pairs)."""
    key: Tensor
    """(num_key_value_heads, pairs)."""


@dataclass(kw_only=True)
class HeadEnergyAccumulator:
    """Accumulator of `HeadEnergies`."""

    num_attention_heads: int
    num_key_value_heads: int
    pairs: int
    device: torch.device
    prefix_length: int = 0
    """Positions at the beginning of every sequence that are not counted."""
    _query: Tensor = field(init=False)
    _key: Tensor = field(init=False)
    _tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        def zeros(heads: int) -> Tensor:
            return torch.zeros(heads, self.pairs, dtype=WORKING_DTYPE, device=self.device)

        self._query = zeros(self.num_attention_heads)
        self._key = zeros(self.num_key_value_heads)

    def add(self, query: Tensor, key: Tensor) -> None:
        """Add one batch before norm and RoPE, (batch, heads, sequence, 2·pairs) each."""
        query, key = query[:, :, self.prefix_length :], key[:, :, self.prefix_length :]
        self._query += self._energy(query)
        self._key += self._energy(key)
        self._tokens += query.shape[0] * query.shape[2]

    def _energy(self, heads: Tensor) -> Tensor:
        """Return the sum of squares, (heads, pairs), float64."""
        squares = _wide(heads).square().sum(dim=(0, 2))
        return squares.view(-1, 2, self.pairs).sum(1).to(WORKING_DTYPE)

    def energies(self) -> HeadEnergies:
        """Return averages over all tokens so far."""
        return HeadEnergies(query=self._query / self._tokens, key=self._key / self._tokens)


@dataclass(kw_only=True)
class RotaryAccumulator:
    """Accumulator of `RotaryStatistics`."""

    num_key_value_heads: int
    pairs: int
    device: torch.device
    prefix_length: int = 0
    """Positions at the beginning of every sequence that are keys, but not queries.

    All queries attend to their keys, so these are part of the spread of the keys.
    """
    _query: Tensor = field(init=False)
    _key: Tensor = field(init=False)
    _product: Tensor = field(init=False)
    _tokens: int = field(init=False, default=0)
    _keys: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        shape = (self.num_key_value_heads, self.pairs)
        self._query = torch.zeros(shape, dtype=WORKING_DTYPE, device=self.device)
        self._key = torch.zeros_like(self._query)
        self._product = torch.zeros_like(self._query)

    def _per_pair(self, per_dimension: Tensor) -> Tensor:
        """Sum the two dimensions of every pair: (heads, 2·pairs) → (heads, pairs)."""
        halves = per_dimension.view(*per_dimension.shape[:-1], 2, self.pairs)
        return halves.sum(-2).to(WORKING_DTYPE)

    def add(self, query: Tensor, key: Tensor) -> None:
        """Add one batch of rotated queries and keys.

        Args:
            query: (batch, num_attention_heads, sequence, head_dim) after RoPE.
            key: (batch, num_key_value_heads, sequence, head_dim) after RoPE.

        Raises:
            NumericalError: if an activation is not finite.
        """
        text = slice(self.prefix_length, None)
        q, k = _wide(query)[:, :, text], _wide(key)
        grouped = q.reshape(q.shape[0], self.num_key_value_heads, -1, *q.shape[2:])
        self._query += self._per_pair(grouped.square().sum(dim=(0, 2, 3)))
        centred = k - k.mean(dim=2, keepdim=True)
        self._key += self._per_pair(centred.square().sum(dim=(0, 2)))
        self._keys += k.shape[0] * k.shape[2]
        products = grouped * k[:, :, text].unsqueeze(2)
        self._product += self._per_pair(products.abs().sum(dim=(0, 2, 3)))
        if not (torch.isfinite(self._query).all() and torch.isfinite(self._key).all()):
            raise NumericalError("a query or a key is NaN or infinite")
        self._tokens += q.shape[0] * q.shape[2]

    def statistics(self) -> RotaryStatistics:
        """Return averages over all tokens so far."""
        return RotaryStatistics(
            query_energy=self._query / self._tokens,
            centered_key_energy=self._key / self._keys,
            product=self._product / self._tokens,
        )


def kl_divergence(dense: Tensor, compressed: Tensor) -> Tensor:
    """Return KL(dense ‖ compressed) at every position, in nats.

    Args:
        dense: logits of the dense model, (rows, vocabulary), float32.
        compressed: logits of the compressed model, of the same shape.

    Returns:
        (rows,), float64, at least 0: float32 rounds small divergences to slightly negative values.
    """
    log_dense = torch.log_softmax(dense, -1)
    difference = log_dense - torch.log_softmax(compressed, -1)
    return difference.mul_(log_dense.exp_()).sum(-1).double().clamp_min_(0.0)
