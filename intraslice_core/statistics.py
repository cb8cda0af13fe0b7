"""Streamed second moments (section 2 of docs/method.md).

Each accumulator takes one batch at a time and keeps sums only: products of a batch are taken in
float32 or better, their sum in float64, so that the split into batches does not matter.
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
"""A Gram matrix's rows are taken in so many parts, each up to the diagonal: 7/12 of the products,
measured at 0.6 of the time for 1536 columns of bfloat16."""
_NARROWEST_PANEL = 128


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or, where it is already wider, as it is."""
    return tensor if tensor.dtype == WORKING_DTYPE else tensor.to(torch.float32)


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Let float32 products be taken of bfloat16 factors, summed in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def second_moment_sum(left: Tensor, right: Tensor) -> Tensor:
    """`Σ_t l_t r_tᵀ` over tokens: products exact, sums in float32 or, of float64, in float64.

    Factors that are bfloat16 are multiplied as such, which loses nothing and is where bfloat16
    units exist several times faster (1,260 against 360 GFLOPS on two cores with AMX).

    Args:
        left: (tokens, n).
        right: (tokens, m).
    """
    if left.dtype == right.dtype == torch.bfloat16:
        with _bfloat16_products():
            return _products(left, right)
    return _products(left, right)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """What `second_moment_sum` gives; of a Gram matrix only one triangle is multiplied out."""
    wide, width = _wide(left), left.shape[1]
    if left is not right:
        return wide.mT @ _wide(right)
    gram = wide.new_empty(width, width)
    step = max(-(-width // _PANELS), _NARROWEST_PANEL)
    for start in range(0, width, step):
        end = min(start + step, width)
        panel = wide[:, start:end].mT @ wide[:, :end]
        gram[start:end, :end] = panel
        gram[:start, start:end] = panel[:, :start].mT
    return gram


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

    def __add__(self, other: Moments) -> Moments:
        """The moments over the tokens of both."""
        total = self.tokens + other.tokens
        mine, theirs = self.tokens / total, other.tokens / total
        return Moments(
            gram=mine * self.gram + theirs * other.gram,
            cross=mine * self.cross + theirs * other.cross,
            correction=mine * self.correction + theirs * other.correction,
            energy=mine * self.energy + theirs * other.energy,
            tokens=total,
        )


@dataclass(kw_only=True)
class MomentAccumulator:
    """Sums for `Moments`. `width` is of the inner activation, `hidden_size` of the outputs."""

    width: int
    hidden_size: int
    device: torch.device
    own_is_linear: bool = False
    """The own output is a projection of `z` itself: its cross moment follows from the Gram matrix
    (`moments`), exactly and for free, and is not streamed."""
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
        """Take one batch.

        Args:
            inner: (tokens, width), the inner activation `z`.
            own: (tokens, hidden_size), the un-pruned module's output `y`.
            correction: (tokens, hidden_size), what the target adds to `own`, or None for nothing.

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
        # One non-finite activation reaches the trace; checking sums keeps the check off the stream.
        if not torch.isfinite(self._gram.diagonal()).all() or energy != energy:
            raise NumericalError("an activation is NaN or infinite")
        self._energy += energy
        self._tokens += inner.shape[0]

    def moments(self, output: Tensor) -> Moments:
        """Averages over all tokens so far.

        Args:
            output: the un-pruned output projection, (width, hidden_size), float64; read only where
                `own_is_linear`.
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
    """What the choice of rotary pairs needs, averaged over tokens, summed over a group's queries.

    Each is (num_key_value_heads, pairs), float64.
    """

    query_energy: Tensor
    """`Σ_h E‖q_pair‖²`."""
    centered_key_energy: Tensor
    """`E‖k_pair - mean over the sequence's keys‖²`, after RoPE."""
    product: Tensor
    """`Σ_h mean|q_j k_j| + mean|q_{j+e/2} k_{j+e/2}|` after RoPE: the paper's score."""


@dataclass(frozen=True, kw_only=True)
class HeadEnergies:
    """`E‖pair‖²` of queries and keys as projected, before their norm and RoPE.

    Each is (num_key_value_heads, pairs), float64, summed over a group's queries.
    """

    query: Tensor
    key: Tensor


@dataclass(kw_only=True)
class HeadEnergyAccumulator:
    """Sums for `HeadEnergies`."""

    num_key_value_heads: int
    pairs: int
    device: torch.device
    _query: Tensor = field(init=False)
    _key: Tensor = field(init=False)
    _tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        shape = (self.num_key_value_heads, self.pairs)
        self._query = torch.zeros(shape, dtype=WORKING_DTYPE, device=self.device)
        self._key = torch.zeros_like(self._query)

    def add(self, query: Tensor, key: Tensor) -> None:
        """Take one batch, (batch, heads, sequence, 2·pairs) each, before norm and RoPE."""
        self._query += self._energy(query)
        self._key += self._energy(key)
        self._tokens += query.shape[0] * query.shape[2]

    def _energy(self, heads: Tensor) -> Tensor:
        """Sum of squares, (num_key_value_heads, pairs)."""
        squares = _wide(heads).square().sum(dim=(0, 2))
        grouped = squares.view(self.num_key_value_heads, -1, 2, self.pairs)
        return grouped.sum(dim=(1, 2)).to(WORKING_DTYPE)

    def energies(self) -> HeadEnergies:
        """Averages over all tokens so far."""
        return HeadEnergies(query=self._query / self._tokens, key=self._key / self._tokens)


@dataclass(kw_only=True)
class RotaryAccumulator:
    """Sums for `RotaryStatistics`."""

    num_key_value_heads: int
    pairs: int
    device: torch.device
    _query: Tensor = field(init=False)
    _key: Tensor = field(init=False)
    _product: Tensor = field(init=False)
    _tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        shape = (self.num_key_value_heads, self.pairs)
        self._query = torch.zeros(shape, dtype=WORKING_DTYPE, device=self.device)
        self._key = torch.zeros_like(self._query)
        self._product = torch.zeros_like(self._query)

    def _per_pair(self, per_dimension: Tensor) -> Tensor:
        """Sum the two dimensions of every pair: (heads, 2·pairs) → (heads, pairs)."""
        per_half = per_dimension.view(*per_dimension.shape[:-1], 2, self.pairs)
        return per_half.sum(-2).to(WORKING_DTYPE)

    def add(self, query: Tensor, key: Tensor) -> None:
        """Take one batch of rotated queries and keys.

        Args:
            query: (batch, num_attention_heads, sequence, head_dim) after RoPE.
            key: (batch, num_key_value_heads, sequence, head_dim) after RoPE.

        Raises:
            NumericalError: if an activation is not finite.
        """
        q, k = _wide(query), _wide(key)
        grouped = q.reshape(q.shape[0], self.num_key_value_heads, -1, *q.shape[2:])
        self._query += self._per_pair(grouped.square().sum(dim=(0, 2, 3)))
        centred = k - k.mean(dim=2, keepdim=True)
        self._key += self._per_pair(centred.square().sum(dim=(0, 2)))
        self._product += self._per_pair((grouped * k.unsqueeze(2)).abs().sum(dim=(0, 2, 3)))
        if not (torch.isfinite(self._query).all() and torch.isfinite(self._key).all()):
            raise NumericalError("a query or a key is NaN or infinite")
        self._tokens += q.shape[0] * q.shape[2]

    def statistics(self) -> RotaryStatistics:
        """Averages over all tokens so far."""
        return RotaryStatistics(
            query_energy=self._query / self._tokens,
            centered_key_energy=self._key / self._tokens,
            product=self._product / self._tokens,
        )
