"""Streamed statistics of queries and keys, by which rotary pairs are scored (section 3c)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from intraslice_core.errors import NumericalError
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.ranks import ALONE, Ranks


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


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
    energy_product: Tensor
    """`Σ_h E[q_j²] E[k_j²] + E[q_{j+e/2}²] E[k_{j+e/2}²]` after RoPE (arXiv 2408.09632)."""


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
    ranks: Ranks = ALONE
    """Ranks whose tokens are averaged over."""
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

    def join(self) -> None:
        """Add up the sums of all ranks."""
        self.ranks.sum_([self._query, self._key])
        self._tokens = int(self.ranks.totals([self._tokens])[0])
        self.ranks = ALONE  # the sums are of all of them now

    def energies(self) -> HeadEnergies:
        """Return averages over all tokens so far."""
        self.join()
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
    ranks: Ranks = ALONE
    """Ranks whose tokens are averaged over."""
    _query: Tensor = field(init=False)
    """Sum of squares of each dimension, (num_key_value_heads, 2·pairs)."""
    _text_key: Tensor = field(init=False)
    """The same of keys at the positions that are queries."""
    _key: Tensor = field(init=False)
    _product: Tensor = field(init=False)
    _tokens: int = field(init=False, default=0)
    _keys: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        shape = (self.num_key_value_heads, self.pairs)
        self._key = torch.zeros(shape, dtype=WORKING_DTYPE, device=self.device)
        self._product = torch.zeros_like(self._key)
        self._query = torch.cat((self._key, self._key), dim=-1)
        self._text_key = torch.zeros_like(self._query)

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
        self._query += grouped.square().sum(dim=(0, 2, 3))
        self._text_key += k[:, :, text].square().sum(dim=(0, 2))
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
        self.ranks.sum_([self._query, self._text_key, self._key, self._product])
        self._tokens, self._keys = map(int, self.ranks.totals([self._tokens, self._keys]))
        self.ranks = ALONE  # the sums are of all of them now
        energies = self._query / self._tokens * (self._text_key / self._tokens)
        return RotaryStatistics(
            query_energy=self._per_pair(self._query) / self._tokens,
            centered_key_energy=self._key / self._keys,
            product=self._product / self._tokens,
            energy_product=self._per_pair(energies),
        )
