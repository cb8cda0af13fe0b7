"""Damped factorisations; the only module that factorises (docs/method.md, section 2).

Every function symmetrises its input, works in float64 and uses the same ladder of dampings. NaN
and infinity are never replaced: a matrix that cannot be factorised raises a `NumericalError`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core.errors import NumericalError

WORKING_DTYPE = torch.float64
LADDER_FACTOR = 10.0
LADDER_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A damped Cholesky factor and its damping."""

    cholesky: Tensor
    """Lower factor of `gram + damping * D`, (…, n, n), float64; see `DampedMatrix` for `D`."""
    damping: float
    """Relative damping of the rung that succeeded."""

    def solve(self, right: Tensor) -> Tensor:
        """Solve the damped system for the right-hand sides `right`, (…, n, m).

        Returns:
            (…, n, m), float64.

        Raises:
            NumericalError: if the solution is not finite.
        """
        solution = torch.cholesky_solve(right.to(WORKING_DTYPE), self.cholesky)
        return require_finite(solution, "the solution of a linear system")

    def inverse(self) -> Tensor:
        """Return the inverse of the damped matrix, (…, n, n), float64.

        Raises:
            NumericalError: if it is not finite.
        """
        return require_finite(torch.cholesky_inverse(self.cholesky), "an inverse")


def require_finite(tensor: Tensor, what: str) -> Tensor:
    """Return `tensor` if all entries are finite; `what` names it in the error.

    Raises:
        NumericalError: if it contains NaN or infinity.
    """
    # The sum is NaN or infinite if an entry is, and needs no mask of the tensor's size. A sum of
    # finite entries may also overflow, so entries are checked only if the sum is not finite.
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise NumericalError(f"{what} contains NaN or infinity")
    return tensor


def symmetrise(matrix: Tensor) -> Tensor:
    """Return the symmetric part, (…, n, n), float64; the input is not modified.

    Raises:
        NumericalError: if the matrix is not finite.
    """
    wide = require_finite(matrix, "a second moment").to(WORKING_DTYPE)
    return (wide + wide.mT).mul_(0.5)


def _mean_diagonal(matrix: Tensor) -> Tensor:
    """Return the mean of the diagonal, (…, 1), or 1 where it is zero, so that damping acts."""
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
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

    Raises:
        NumericalError: if the matrix is not finite.
    """

    def __init__(self, gram: Tensor, *, per_dimension: bool = False) -> None:
        self._matrix = symmetrise(gram)
        self._diagonal = self._matrix.diagonal(dim1=-2, dim2=-1).clone()
        scale = _mean_diagonal(self._matrix).expand(self._diagonal.shape)
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
        rung, diagonal = damping, self._matrix.diagonal(dim1=-2, dim2=-1)
        for _ in range(LADDER_STEPS + 1):
            diagonal.copy_(self._diagonal + rung * self.scale)
            factor, failed = torch.linalg.cholesky_ex(self._matrix)
            if not failed.any() and torch.isfinite(factor.sum()):
                return Factor(cholesky=factor, damping=rung)
            rung *= LADDER_FACTOR
        diagonal.copy_(self._diagonal)
        raise NumericalError(
            f"a Gram matrix of width {self._matrix.shape[-1]} is not positive definite even with "
            f"damping {rung / LADDER_FACTOR:g}: its rank is {_numerical_rank(self._matrix)}",
            hint="if the rank is low, the calibration text is too uniform or too short: use text "
            "with more variety, or more tokens",
        )


def damped_cholesky(gram: Tensor, damping: float, *, per_dimension: bool = False) -> Factor:
    """Factorise a positive semi-definite matrix with a single damping; see `DampedMatrix`.

    Raises:
        NumericalError: if the matrix is not finite or no rung of the ladder succeeds.
    """
    return DampedMatrix(gram, per_dimension=per_dimension).factor(damping)


def shrunken(gram: Tensor, share: float) -> Tensor:
    """Return `gram + share · diag(gram)`, (…, n, n): correlations shrunk by `1 / (1 + share)`."""
    result = gram.clone()
    result.diagonal(dim1=-2, dim2=-1).mul_(1.0 + share)
    return result


def _numerical_rank(gram: Tensor) -> int:
    """Return the largest number of eigenvalues of (…, n, n) that exceed rounding errors."""
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
    try:
        values, vectors = torch.linalg.eigh(symmetrise(gram))
    except RuntimeError as error:
        raise NumericalError(f"an eigendecomposition failed: {error}") from error
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
    return require_finite(torch.linalg.qr(matrix.to(WORKING_DTYPE)).Q, "an orthonormal basis")
