"""Streamed second moments of activations (docs/method.md, section 2).

An accumulator takes one batch at a time and keeps only sums. Products within a batch are computed
in float32 or float64 and added up in float64, so that the split into batches does not matter.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intraslice_core.blocked import mirrored
from intraslice_core.device import exact_products
from intraslice_core.errors import NumericalError
from intraslice_core.linalg import WORKING_DTYPE, product
from intraslice_core.ranks import ALONE, Ranks

_PANELS = 6
"""Number of row panels of a Gram matrix, each computed up to the diagonal.

With 6 panels, 7/12 of the products remain; measured at 0.6 of the time for 1,536 columns of
bfloat16.
"""
_MIN_PANEL_WIDTH = 128
_TOKENS_IN_FLOAT32 = 16_384
"""Tokens added up in float32 before the sum is added to the float64 total.

Adding a matrix of 1,536 columns to float64 after every 2,048 tokens takes a third as long as the
product. The rounding error of eight float32 sums is below that of the products themselves.
"""


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == WORKING_DTYPE else tensor.to(torch.float32)


def second_moment_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return `Σ_t l_t r_tᵀ` over tokens, (n, m), float32, or float64 of float64 inputs.

    bfloat16 inputs are multiplied as bfloat16: the products are exact, and with bfloat16 units
    several times faster (1,260 against 360 GFLOPS on two cores with AMX). On a GPU they and float16
    inputs are multiplied as TF32, which is exact for them, too. float32 inputs never are.

    Args:
        left: (tokens, n).
        right: (tokens, m). If it is the same object as `left`, only one triangle is computed.
    """
    wide = _wide(left)
    total = wide.new_zeros(left.shape[1], right.shape[1])
    with _products_of(left, right):
        if left is right:
            _add_triangle(total, wide)
            return mirrored(total)
        return total.addmm_(wide.mT, _wide(right))


def _products_of(*factors: Tensor) -> AbstractContextManager[None]:
    """Return the context in which products of these factors are exact and fastest."""
    dtypes = {factor.dtype for factor in factors}
    dtype = dtypes.pop() if len(dtypes) == 1 else WORKING_DTYPE
    return exact_products(dtype, factors[0].device)


def _add_triangle(total: Tensor, wide: Tensor) -> None:
    """Add `wideᵀ wide` to the panels of `total` up to the diagonal, in place."""
    width = wide.shape[1]
    step = max(-(-width // _PANELS), _MIN_PANEL_WIDTH)
    for start in range(0, width, step):
        end = min(start + step, width)
        total[start:end, :end].addmm_(wide[:, start:end].mT, wide[:, :end])


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
    """`E[z yᵀ]` of the module's own output, (width, hidden_size), float64."""
    correction: Tensor
    """`E[z (target - y)ᵀ]`, (width, hidden_size), float64: zero where the target is `y`."""
    energy: float
    """`E‖target‖²`."""
    tokens: int
    """Number of tokens averaged over."""
    residual: Tensor | None = None
    """`E[z (y - Wᵀz)ᵀ]` with `W` the rows of the dense projection that read `z`, where it is known
    without cancellation, (width, hidden_size), float64."""

    def __add__(self, other: Moments) -> Moments:
        """Return the moments over the tokens of both."""
        return self.plus(other)

    def plus(self, other: Moments, *, in_place: bool = False) -> Moments:
        """Return the moments over the tokens of both, in the tensors of `self` if `in_place`."""
        total = self.tokens + other.tokens
        share, other_share = self.tokens / total, other.tokens / total

        def mean(first: Tensor, second: Tensor) -> Tensor:
            shared = first.mul_(share) if in_place else first * share
            return shared.add_(second, alpha=other_share)

        residual = None
        if self.residual is not None and other.residual is not None:
            residual = mean(self.residual, other.residual)
        return Moments(
            gram=mean(self.gram, other.gram),
            cross=mean(self.cross, other.cross),
            correction=mean(self.correction, other.correction),
            energy=share * self.energy + other_share * other.energy,
            tokens=total,
            residual=residual,
        )


class _ProductSum:
    """Sum over batches of `Σ_t l_t r_tᵀ`: float32 over some batches, float64 over all."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self._shape, self._device = (rows, columns), device
        self._total: Tensor | None = None
        self._block: Tensor | None = None
        self._tokens = 0

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add one batch, (tokens, rows) and (tokens, columns); equal objects, one triangle."""
        wide = _wide(left)
        if self._block is None:
            self._block = torch.zeros(self._shape, dtype=wide.dtype, device=self._device)
        with _products_of(left, right):
            if left is right:
                _add_triangle(self._block, wide)
            else:
                self._block.addmm_(wide.mT, _wide(right).to(wide.dtype))
        self._tokens += len(left)
        if self._tokens >= _TOKENS_IN_FLOAT32:
            self._flush()

    def is_finite(self) -> bool:
        """Report whether the diagonal of the sums since the last flush is finite."""
        return self._block is None or bool(torch.isfinite(self._block.diagonal()).all())

    @property
    def is_used(self) -> bool:
        """Report whether a batch was added."""
        return self._block is not None or self._total is not None

    def _flush(self) -> None:
        if self._block is None:
            return
        if self._total is None:
            self._total = self._block.to(WORKING_DTYPE)
        else:
            self._total += self._block
        self._block, self._tokens = None, 0

    def total(self) -> Tensor:
        """Return the sum so far, float64, in its own storage: zero if no batch was added."""
        self._flush()
        if self._total is None:
            self._total = torch.zeros(self._shape, dtype=WORKING_DTYPE, device=self._device)
        return self._total

    def mean(self, tokens: int) -> Tensor:
        """Return the sum divided by a number of tokens, float64, and clear it."""
        total, self._total = self.total(), None
        return total.div_(tokens)


@dataclass(kw_only=True)
class MomentAccumulator:
    """Accumulator of `Moments`."""

    width: int
    """Width of the inner activation."""
    hidden_size: int
    """Width of the module's output."""
    device: torch.device
    own_is_linear: bool = False
    """Flag for a module whose own output is a projection of the whole inner activation.

    Its cross moment then follows exactly from the Gram matrix and is not accumulated.
    """
    kept: int | None = None
    """Leading entries of the inner activation that are regressors `z`; None for all of them.

    The others only contribute to the module's own output, which must be linear.
    """
    ranks: Ranks = ALONE
    """Ranks whose tokens are averaged over."""
    _gram: _ProductSum = field(init=False)
    _removed: _ProductSum | None = field(init=False, default=None)
    _cross: _ProductSum = field(init=False)
    _correction: _ProductSum = field(init=False)
    _target: _ProductSum = field(init=False)
    _energy: float = field(init=False, default=0.0)
    _has_energy: bool = field(init=False, default=False)
    _tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        count = self.width if self.kept is None else self.kept
        self._gram = _ProductSum(count, count, self.device)
        if count < self.width:
            assert self.own_is_linear
            self._removed = _ProductSum(count, self.width - count, self.device)
        self._cross = _ProductSum(count, self.hidden_size, self.device)
        self._correction = _ProductSum(count, self.hidden_size, self.device)
        self._target = _ProductSum(count, self.hidden_size, self.device)

    def add(self, inner: Tensor, own: Tensor, correction: Tensor | None) -> None:
        """Add one batch.

        Args:
            inner: inner activation, (tokens, width).
            own: output `y` of the unpruned module, (tokens, hidden_size).
            correction: target minus `own`, (tokens, hidden_size), or None if they are equal.

        Raises:
            NumericalError: if an activation is not finite.
        """
        regressors = self._add_inner(inner)
        if not self.own_is_linear:
            self._cross.add(regressors, own)
        target = _wide(own)
        if correction is not None:
            self._correction.add(regressors, correction)
            target = target + _wide(correction)
        self._add_energy(target)

    def add_linear(self, inner: Tensor, target: Tensor | None) -> None:
        """Add one batch of a module whose own output is linear and need not be computed.

        Args:
            inner: inner activation, (tokens, width).
            target: (tokens, hidden_size), or None if it is the module's own output.

        Raises:
            NumericalError: if an activation is not finite.
        """
        regressors = self._add_inner(inner)
        if target is not None:
            self._target.add(regressors, target)
            self._add_energy(_wide(target))

    def _add_inner(self, inner: Tensor) -> Tensor:
        """Add the products of inner activations; return the regressors among them."""
        regressors = inner
        if self._removed is not None:
            regressors = inner[:, : self.kept]
            self._removed.add(regressors, inner[:, self.kept :])
        self._gram.add(regressors, regressors)
        # One non-finite activation makes the trace non-finite, so checking the sums is enough.
        if not self._gram.is_finite():
            raise NumericalError("an activation is NaN or infinite")
        self._tokens += inner.shape[0]
        return regressors

    def _add_energy(self, target: Tensor) -> None:
        energy = float(target.square().sum())
        if energy != energy:
            raise NumericalError("an activation is NaN or infinite")
        self._energy += energy
        self._has_energy = True

    def moments(self, output: Tensor) -> Moments:
        """Return averages over all tokens so far, and clear the sums.

        Args:
            output: dense output projection, (width, hidden_size), float64; used only with
                `own_is_linear`.

        Raises:
            NumericalError: if no tokens were added.
        """
        self._join()
        if self._tokens == 0:
            raise NumericalError("no tokens were seen")
        gram = mirrored(self._gram.mean(self._tokens))
        residual, energy = None, self._energy / self._tokens
        if self.own_is_linear:
            own = output[: len(gram)]
            cross = product(gram, own)
            residual = torch.zeros_like(cross)
            if self._removed is not None:
                residual = product(self._removed.mean(self._tokens), output[len(gram) :])
                cross += residual
            if not self._has_energy:
                energy = float((own * cross).sum())
        else:
            cross = self._cross.mean(self._tokens)
        correction = self._correction.mean(self._tokens)
        if self._target.is_used:
            correction += self._target.mean(self._tokens).sub_(cross)
        return Moments(
            gram=gram,
            cross=cross,
            correction=correction,
            energy=energy,
            tokens=self._tokens,
            residual=residual,
        )

    def _join(self) -> None:
        """Add up the sums of all ranks, some of which may have seen no tokens."""
        if self.ranks.is_alone:
            return
        sums = [self._gram, self._cross, self._correction, self._target]
        sums += [] if self._removed is None else [self._removed]
        facts = (self._tokens, self._energy, self._has_energy, *(own.is_used for own in sums))
        tokens, self._energy, has_energy, *users = self.ranks.totals(facts)
        self._tokens, self._has_energy = int(tokens), has_energy > 0.0
        self.ranks.sum_([own.total() for own, used in zip(sums, users, strict=True) if used > 0.0])
        self.ranks = ALONE  # the sums are of all of them now


def kl_divergence(dense: Tensor, compressed: Tensor) -> Tensor:
    """Return KL(dense ‖ compressed) at every position, in nats.

    Args:
        dense: log-probabilities of the dense model, (rows, vocabulary), float32.
        compressed: log-probabilities of the compressed model, of the same shape.

    Returns:
        (rows,), float64, at least 0: float32 rounds small divergences to slightly negative values.
    """
    weighted = (dense - compressed).mul_(dense.exp())
    return weighted.sum(-1).double().clamp_min_(0.0)
