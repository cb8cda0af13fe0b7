"""Damped factorisations; the only module that factorises (docs/method.md, section 2).

Every function symmetrises its input, returns float64 and uses the same ladder of dampings. NaN and
infinity are never replaced: a matrix that cannot be factorised raises a `NumericalError`. An error
for lack of memory passes unchanged.

Factorisations are in float64. On GPUs whose float64 is slow, those of single matrices of at least
`MIXED_WIDTH` rows are in float32, refined and checked (`mixed_precision`), and in float64 where the
check fails. Where memory is short, those of wide matrices are in place (`blocked`), in float64 on
every device. Batches are of heads, whose matrices are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from intraslice_core import blocked
from intraslice_core.blocked import BlockedFactor
from intraslice_core.device import factorisation_path
from intraslice_core.device_memory import lacks_memory
from intraslice_core.errors import NumericalError
from intraslice_core.mixed_precision import (
    RoundedFactor,
    System,
    refined_eigenbasis,
    rounded_factor,
    rounded_product,
)

WORKING_DTYPE = torch.float64
LADDER_FACTOR = 10.0
LADDER_STEPS = 4
MIXED_WIDTH = 1024
"""Rows from which float32 saves time where float64 is slow.

A smaller matrix takes a GPU a few milliseconds in float64 even at 1/64 of the rate of float32.
"""

_forced_width: ContextVar[int | None] = ContextVar("forced_width", default=None)


@contextmanager
def mixed_precision(width: int = 1) -> Iterator[None]:
    """Factorise matrices of at least `width` rows in float32 with refinement, on any device.

    For tests and measurements; otherwise the device decides.
    """
    token = _forced_width.set(width)
    try:
        yield
    finally:
        _forced_width.reset(token)


def _is_mixed(matrix: Tensor) -> bool:
    """Report whether a matrix, (…, n, n), is factorised in float32 first."""
    return matrix.dim() == 2 and _is_wide(len(matrix), matrix.device)


def _is_wide(width: int, device: torch.device) -> bool:
    """Report whether operations on matrices of a width are in float32 on a device."""
    forced = _forced_width.get()
    if blocked.lacks_room(width):
        return False
    if forced is not None:
        return width >= forced
    return width >= MIXED_WIDTH and factorisation_path(device) == "mixed"


@contextmanager
def _numerical_errors(what: str) -> Iterator[None]:
    """Raise a `NumericalError` for torch's error, unless it is for lack of memory."""
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error):
            raise
        raise NumericalError(f"{what} failed: {error}") from error


class Factor:
    """A damped Cholesky factor and its damping.

    It solves for `gram + damping * D`; see `DampedMatrix` for `D`.

    Args:
        damping: relative damping of the rung that succeeded.
        factor: lower factor in float64, (…, n, n); one that was made in place; or one in float32
            with the matrix itself, from which the one in float64 is made where it is needed.
    """

    def __init__(self, *, damping: float, factor: Tensor | BlockedFactor | RoundedFactor) -> None:
        self.damping = damping
        self._factor = factor

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the factorisation: float64, or float32 if its results are refined."""
        return self._factor.dtype if isinstance(self._factor, Tensor) else self._factor.lower.dtype

    @property
    def is_in_place(self) -> bool:
        """True if there may be no memory for a copy of the factor."""
        return isinstance(self._factor, BlockedFactor)

    @property
    def cholesky(self) -> Tensor:
        """Lower factor, (…, n, n), float64, of the precision of `dtype`."""
        return self._factor if isinstance(self._factor, Tensor) else self._factor.exact()

    def solve(self, right: Tensor) -> Tensor:
        """Solve the damped system for the right-hand sides `right`, (…, n, m).

        Returns:
            (…, n, m), float64.

        Raises:
            NumericalError: if the solution is not finite.
        """
        right, solution = right.to(WORKING_DTYPE), None
        with _numerical_errors("the solution of a linear system"):
            if not isinstance(self._factor, Tensor):
                solution = self._factor.solve(right)
            if solution is None:
                solution = torch.cholesky_solve(right, self._in_float64())
        return require_finite(solution, "the solution of a linear system")

    def refit_leading(self, rows: Tensor, keep: int) -> Tensor:
        """Return the first rows of a projection after they make up for the others.

        With the damped matrix `L Lᵀ` that is `W[:k] + L[:k, :k]⁻ᵀ L[k:, :k]ᵀ W[k:]`.

        Args:
            rows: `W`, (n, m), float64.
            keep: `k`.

        Returns:
            (keep, m), float64.

        Raises:
            NumericalError: if they are not finite.
        """
        change = None
        with _numerical_errors("the solution of a linear system"):
            if isinstance(self._factor, BlockedFactor):
                change = self._factor.refit_change(rows, keep)
            elif isinstance(self._factor, RoundedFactor):
                coupling = self._factor.system.matrix[:keep, keep:]
                change = self._factor.leading(keep).solve(product(coupling, rows[keep:]))
            if change is None:
                lower = self._in_float64()
                right = lower[keep:, :keep].mT @ rows[keep:]
                change = torch.linalg.solve_triangular(lower[:keep, :keep].mT, right, upper=True)
        return require_finite(rows[:keep] + change, "the solution of a linear system")

    def inverse(self, *, overwrite: bool = False) -> Tensor:
        """Return the inverse of the damped matrix, (…, n, n), computed in float64.

        Args:
            overwrite: let it replace a factor that was made in place, which is not used afterwards.

        Raises:
            NumericalError: if it is not finite.
        """
        with _numerical_errors("an inversion"):
            if isinstance(self._factor, BlockedFactor):
                inverse = self._factor.inverse(overwrite=overwrite)
            else:
                inverse = torch.cholesky_inverse(self._in_float64())
        return require_finite(inverse, "an inverse")

    def rounded_inverse(self) -> Tensor | None:
        """Return the inverse in float32, (n, n).

        Returns:
            None if the factor is in float64, or not precise enough for an inverse.

        Raises:
            NumericalError: if it is not finite.
        """
        if not isinstance(self._factor, RoundedFactor):
            return None
        with _numerical_errors("an inversion"):
            inverse = self._factor.inverse()
        return None if inverse is None else require_finite(inverse, "an inverse")

    def inverts(self, inverse: Tensor, rows: Tensor) -> bool:
        """Report whether `inverse`, (k, k), float32, is that of the given rows and columns.

        Args:
            inverse: made from `rounded_inverse` by eliminating the other rows.
            rows: (k,), int64.
        """
        assert isinstance(self._factor, RoundedFactor)
        return self._factor.inverts(inverse, rows)

    def _in_float64(self) -> Tensor:
        """Return the lower factor in float64, made again if it was rounded.

        Raises:
            NumericalError: if the matrix is not positive definite.
        """
        if isinstance(self._factor, BlockedFactor):
            return self._factor.exact()
        if isinstance(self._factor, RoundedFactor):
            factor = _cholesky(self._factor.system.dense())
            if factor is None:
                raise NumericalError(
                    f"a Gram matrix is not positive definite with damping {self.damping:g}"
                )
            self._factor = factor
        return self._factor


def require_finite(tensor: Tensor, what: str) -> Tensor:
    """Return `tensor` if all entries are finite; `what` names it in the error.

    Raises:
        NumericalError: if it contains NaN or infinity.
    """
    if not is_finite(tensor):
        raise NumericalError(f"{what} contains NaN or infinity")
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Report whether all entries are finite, without a copy of the tensor if they are."""
    # The sum is NaN or infinite if an entry is, and needs no mask of the tensor's size. A sum of
    # finite entries may also overflow, so entries are checked only if the sum is not finite.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def symmetrise(matrix: Tensor) -> Tensor:
    """Return the symmetric part, (…, n, n), float64; the input is not modified.

    Raises:
        NumericalError: if the matrix is not finite.
    """
    wide = require_finite(matrix, "a second moment").to(WORKING_DTYPE)
    return (wide + wide.mT).mul_(0.5)


def _mean_or_one(diagonal: Tensor) -> Tensor:
    """Return the mean of a diagonal, (…, 1), or 1 where it is zero, so that damping acts."""
    mean = diagonal.mean(-1, keepdim=True)
    return torch.where(mean > 0, mean, torch.ones_like(mean))


DIAGONAL_FLOOR = 1e-6
"""Floor of the diagonal in damping per dimension, relative to the mean of the diagonal."""


class DampedMatrix:
    """A positive semi-definite matrix to be factorised with several dampings.

    The factorised matrix is `gram + damping * D`. `D` is the mean of the diagonal times `I`.

    Args:
        gram: (…, n, n), any float dtype.
        per_dimension: use the diagonal itself as `D`, floored at `DIAGONAL_FLOOR` of its mean. A
            few dimensions of huge energy then do not decide how much the others are damped.
        shrinkage: share of the diagonal that is added to it before, as by `shrunken`.

    Raises:
        NumericalError: if the matrix is not finite.
    """

    def __init__(
        self, gram: Tensor, *, per_dimension: bool = False, shrinkage: float = 0.0
    ) -> None:
        self._is_in_place = gram.dim() == 2 and blocked.lacks_room(len(gram))
        if self._is_in_place:  # copied for one factor at a time
            self._matrix = require_finite(gram, "a second moment")
            diagonal = gram.diagonal().to(WORKING_DTYPE, copy=True)
        else:
            self._matrix = symmetrise(gram)
            diagonal = self._matrix.diagonal(dim1=-2, dim2=-1)
        self._diagonal = diagonal.mul_(1.0 + shrinkage).clone()
        scale = _mean_or_one(diagonal).expand(self._diagonal.shape)
        if per_dimension:
            scale = torch.maximum(self._diagonal, DIAGONAL_FLOOR * scale)
        self.scale = scale
        """Diagonal of `D`, (…, n), float64."""

    def factor(self, damping: float) -> Factor:
        """Factorise with the least damping of the ladder that works.

        Args:
            damping: first rung of the ladder; each next rung is `LADDER_FACTOR` times larger.

        Raises:
            NumericalError: if no rung of the ladder succeeds.
        """
        rung = damping
        for _ in range(LADDER_STEPS + 1):
            with _numerical_errors("a Cholesky factorisation"):
                factor = self._factorise(self._diagonal + rung * self.scale)
            if factor is not None:
                return Factor(damping=rung, factor=factor)
            rung *= LADDER_FACTOR
        rank = "" if self._is_in_place else f": its rank is {self._rank()}"
        raise NumericalError(
            f"a Gram matrix of width {self._matrix.shape[-1]} is not positive definite even with "
            f"damping {rung / LADDER_FACTOR:g}{rank}",
            hint="if the rank is low, the calibration text is too uniform or too short: use text "
            "with more variety, or more tokens",
        )

    def _rank(self) -> int:
        """Return the numerical rank of the undamped matrix, which takes copies of it."""
        self._matrix.diagonal(dim1=-2, dim2=-1).copy_(self._diagonal)
        return _numerical_rank(self._matrix)

    def _factorise(self, damped: Tensor) -> Tensor | BlockedFactor | RoundedFactor | None:
        """Return a factor of the matrix with the diagonal `damped`, (…, n); None if it has none."""
        if self._is_in_place:
            copied = blocked.symmetrised(self._matrix)
            copied.diagonal().copy_(damped)
            return blocked.factorise(copied)
        self._matrix.diagonal(dim1=-2, dim2=-1).copy_(damped)
        if _is_mixed(self._matrix):
            rounded = rounded_factor(System(matrix=self._matrix, diagonal=damped))
            if rounded is not None:
                return rounded
        return _cholesky(self._matrix)


def _cholesky(matrix: Tensor) -> Tensor | None:
    """Return the lower factor, (…, n, n), float64; None if a matrix is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed.any() or not torch.isfinite(factor.sum()) else factor


def damped_cholesky(
    gram: Tensor, damping: float, *, per_dimension: bool = False, shrinkage: float = 0.0
) -> Factor:
    """Factorise a positive semi-definite matrix with a single damping; see `DampedMatrix`.

    Raises:
        NumericalError: if the matrix is not finite or no rung of the ladder succeeds.
    """
    matrix = DampedMatrix(gram, per_dimension=per_dimension, shrinkage=shrinkage)
    return matrix.factor(damping)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply second moments, or weights, with weights.

    Where factorisations are in float32, wide products are, too: moments are sums of float32
    products, so that a further rounding of that size changes little. Differences of such products
    that may cancel do not belong here.

    Args:
        left: (…, n, k), float64.
        right: (k, m), float64.

    Returns:
        (…, n, m), float64.
    """
    if not _is_wide(right.shape[0], right.device):
        return left @ right
    return rounded_product(left, right)


def solve(matrix: Tensor, right: Tensor, *, left: bool = True) -> Tensor:
    """Solve small systems, which are blocks of a larger one, in their own data type.

    Args:
        matrix: (…, n, n).
        right: (…, n, m) or (…, n); (…, m, n) unless `left`.
        left: solve `matrix @ X = right`, else `X @ matrix = right`.

    Returns:
        Shape of `right`.

    Raises:
        NumericalError: if a matrix is singular.
    """
    with _numerical_errors("the solution of a linear system"):
        solution: Tensor = torch.linalg.solve(matrix, right, left=left)
    return solution


def shrunken(gram: Tensor, share: float) -> Tensor:
    """Return `gram + share · diag(gram)`, (…, n, n): correlations shrunk by `1 / (1 + share)`."""
    result = gram.clone()
    result.diagonal(dim1=-2, dim2=-1).mul_(1.0 + share)
    return result


def submatrix(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return some rows and the same columns of (n, n), in any order, (k, k).

    Where memory is short, no copy of all columns of these rows is made.
    """
    short = blocked.lacks_room(len(matrix))
    return blocked.submatrix(matrix, rows) if short else matrix[rows][:, rows]


def _numerical_rank(gram: Tensor) -> int:
    """Return the largest number of eigenvalues of (…, n, n) that exceed rounding errors."""
    with _numerical_errors("an eigendecomposition"):
        values = torch.linalg.eigvalsh(symmetrise(gram))
    floor = values.amax(-1, keepdim=True) * gram.shape[-1] * torch.finfo(torch.float32).eps
    return int((values > floor).sum(-1).max())


def eigenbasis(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of a positive semi-definite matrix (…, n, n).

    Returns:
        Eigenvalues (…, n), descending, clamped to at least 0, and eigenvectors as columns,
        (…, n, n), both float64.

    Raises:
        NumericalError: if the matrix is not finite or the decomposition fails.
    """
    matrix = symmetrise(gram)
    with _numerical_errors("an eigendecomposition"):
        refined = refined_eigenbasis(matrix) if _is_mixed(matrix) else None
        values, vectors = torch.linalg.eigh(matrix) if refined is None else refined
    return values.flip(-1).clamp_min(0), require_finite(vectors.flip(-1), "an eigenbasis")


def square_roots(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return `S^{1/2}` and `S^{-1/2}` of a damped second moment, each (…, n, n), float64.

    Args:
        gram: (…, n, n).
        damping: relative to the mean eigenvalue.

    Raises:
        NumericalError: if the matrix is not finite or the decomposition fails.
    """
    values, vectors = eigenbasis(gram)
    scale = values.mean(-1, keepdim=True)
    floor = damping * torch.where(scale > 0, scale, torch.ones_like(scale))
    roots = (values + floor).sqrt()
    return (vectors * roots.unsqueeze(-2)) @ vectors.mT, (
        vectors / roots.unsqueeze(-2)
    ) @ vectors.mT


def leading_left_singular_vectors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the top left singular vectors and all squared singular values of (…, n, m).

    Returns:
        (…, n, rank) and (…, n), descending, both float64.

    Raises:
        NumericalError: if the matrix is not finite or the decomposition fails.
    """
    squares, vectors = eigenbasis(matrix @ matrix.mT)
    return vectors[..., :rank], squares


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """Return an orthonormal basis of the column space, (…, n, r), float64.

    Raises:
        NumericalError: if the result is not finite.
    """
    with _numerical_errors("an orthonormal basis"):
        basis = torch.linalg.qr(matrix.to(WORKING_DTYPE)).Q
    return require_finite(basis, "an orthonormal basis")
