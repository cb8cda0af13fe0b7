"""Damped factorisations: the only place that factorises (section 2 of docs/method.md).

Everything here symmetrises its input, works in float64 and climbs one ladder of damping. Nothing
is ever replaced by a finite number: what cannot be factorised raises.
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
    """A damped Cholesky factor and the damping that made it possible."""

    cholesky: Tensor
    """Lower factor of `gram + damping * mean(diag) * I`, (…, n, n), float64."""
    damping: float
    """Relative damping, in units of the mean of the diagonal."""

    def solve(self, right: Tensor) -> Tensor:
        """Solve against `right` (…, n, m); returns float64 (…, n, m)."""
        solution = torch.cholesky_solve(right.to(WORKING_DTYPE), self.cholesky)
        return require_finite(solution, "the solution of a linear system")

    def inverse(self) -> Tensor:
        """The damped inverse, (…, n, n), float64."""
        return require_finite(torch.cholesky_inverse(self.cholesky), "an inverse")


def require_finite(tensor: Tensor, what: str) -> Tensor:
    """Return `tensor`, or raise.

    Raises:
        NumericalError: if it holds NaN or infinity.
    """
    # A sum is infinite or NaN if an entry is, and builds no mask of the tensor's size. It may also
    # overflow on its own, so only then is every entry looked at.
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise NumericalError(f"{what} holds NaN or infinity")
    return tensor


def symmetrise(matrix: Tensor) -> Tensor:
    """The symmetric part in float64, (…, n, n); the input is left alone.

    Raises:
        NumericalError: if the matrix is not finite.
    """
    wide = require_finite(matrix, "a second moment").to(WORKING_DTYPE)
    return (wide + wide.mT).mul_(0.5)


def _mean_diagonal(matrix: Tensor) -> Tensor:
    """Mean of the diagonal, (…, 1); 1 where the matrix is zero, so that damping still acts."""
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return torch.where(mean > 0, mean, torch.ones_like(mean))


DIAGONAL_FLOOR = 1e-6
"""Of a diagonal, relative to its mean, where each dimension is damped by its own entry."""


def damped_cholesky(gram: Tensor, damping: float, *, per_dimension: bool = False) -> Factor:
    """Factorise a positive semi-definite matrix, damping it as little as the ladder allows.

    Args:
        gram: (…, n, n), any float dtype.
        damping: first rung, relative to the mean of the diagonal.
        per_dimension: relative to each entry of the diagonal instead: a few dimensions of huge
            energy then do not decide how much the others are damped.

    Raises:
        NumericalError: if the matrix is not finite or the ladder ends.
    """
    matrix = symmetrise(gram)
    scale = _mean_diagonal(matrix).expand(matrix.shape[:-1])
    if per_dimension:
        scale = torch.maximum(matrix.diagonal(dim1=-2, dim2=-1), DIAGONAL_FLOOR * scale)
    rung, diagonal = damping, matrix.diagonal(dim1=-2, dim2=-1).clone()
    for _ in range(LADDER_STEPS + 1):
        matrix.diagonal(dim1=-2, dim2=-1).copy_(diagonal + rung * scale)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed.any() and torch.isfinite(factor.sum()):
            return Factor(cholesky=factor, damping=rung)
        rung *= LADDER_FACTOR
    raise NumericalError(
        f"a Gram matrix of width {matrix.shape[-1]} is not positive definite even with damping "
        f"{rung / LADDER_FACTOR:g}",
        hint="calibrate on more tokens",
    )


def eigenbasis(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (…, n) in descending order, at least 0, and eigenvectors (…, n, n) as columns.

    Raises:
        NumericalError: if the matrix is not finite or the decomposition fails.
    """
    try:
        values, vectors = torch.linalg.eigh(symmetrise(gram))
    except RuntimeError as error:
        raise NumericalError(f"an eigendecomposition failed: {error}") from error
    return values.flip(-1).clamp_min(0), require_finite(vectors.flip(-1), "an eigenbasis")


def square_roots(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """`S^{1/2}` and `S^{-1/2}` of a damped second moment, each (…, n, n), float64."""
    values, vectors = eigenbasis(gram)
    scale = values.mean(-1, keepdim=True)
    floor = damping * torch.where(scale > 0, scale, torch.ones_like(scale))
    roots = (values + floor).sqrt()
    return (vectors * roots.unsqueeze(-2)) @ vectors.mT, (
        vectors / roots.unsqueeze(-2)
    ) @ vectors.mT


def leading_left_singular_vectors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Top left singular vectors (…, n, rank) and all squared singular values (…, n)."""
    squares, vectors = eigenbasis(matrix @ matrix.mT)
    return vectors[..., :rank], squares


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the column space, (…, n, r), float64.

    Raises:
        NumericalError: if the result is not finite.
    """
    return require_finite(torch.linalg.qr(matrix.to(WORKING_DTYPE)).Q, "an orthonormal basis")
