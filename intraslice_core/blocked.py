"""Cholesky factors and inverses in place, a panel at a time (docs/method.md, section 2).

For matrices so wide that there is no memory for copies of them. torch's own factorisation, solution
and inversion allocate a matrix of the full size each, or two; here the work space is a few panels.
All is in float64.

The algorithms are those of LAPACK's `potrf` (left-looking), `trtri` and `lauum`, in products of
panels (E. Anderson et al., LAPACK Users' Guide, 3rd edition, SIAM 1999).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

PANELS = 16
"""Panels that a wide matrix is divided into; the work space is a few of them."""
LEAST_WIDTH = 64
"""Least width of a panel: products of narrower ones are slow."""
IN_PLACE_WIDTH = 1024
"""Rows from which a matrix is factorised in place where memory is short; others take 8 MiB."""

_in_place_width: ContextVar[int | None] = ContextVar("in_place_width", default=None)


@contextmanager
def factorising_in_place(*, active: bool = True, width: int = IN_PLACE_WIDTH) -> Iterator[None]:
    """Factorise wide matrices in one copy of them, as there is no memory for several.

    Args:
        active: False changes nothing.
        width: least number of rows.
    """
    token = _in_place_width.set(width if active else _in_place_width.get())
    try:
        yield
    finally:
        _in_place_width.reset(token)


def lacks_room(width: int) -> bool:
    """Report whether there may be no memory for several matrices of a width."""
    least = _in_place_width.get()
    return least is not None and width >= least


def panels(size: int) -> list[slice]:
    """Return the consecutive panels of `size` rows or columns."""
    width = max(-(-size // PANELS), LEAST_WIDTH)
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]


# -- copies ----------------------------------------------------------------------------------------


def symmetrised(matrix: Tensor) -> Tensor:
    """Return the symmetric part of a matrix, (n, n), in one new tensor, float64."""
    result = torch.empty(matrix.shape, dtype=torch.float64, device=matrix.device)
    for rows in panels(len(matrix)):
        result[rows].copy_(matrix[rows]).add_(matrix[:, rows].mT).mul_(0.5)
    return result


def submatrix(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return some rows and the same columns of (n, n) in one new tensor, (k, k).

    Args:
        matrix: (n, n).
        rows: in any order, (k,), int64.
    """
    result = torch.empty((len(rows), len(rows)), dtype=matrix.dtype, device=matrix.device)
    return _gather(result, matrix, rows)


def compacted(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return some rows and columns, (k, k), in the memory of the matrix, which is overwritten.

    Args:
        matrix: (n, n), contiguous.
        rows: ascending, (k,), int64.
    """
    # Row i of the result ends at or before the beginning of row `rows[i + 1]` of the matrix, so
    # that nothing is overwritten before it is read.
    count = len(rows)
    return _gather(matrix.view(-1)[: count * count].view(count, count), matrix, rows)


def _gather(result: Tensor, matrix: Tensor, rows: Tensor) -> Tensor:
    for part in panels(len(rows)):
        result[part] = matrix[rows[part]][:, rows]
    return result


def mirrored(triangle: Tensor) -> Tensor:
    """Copy the lower triangle of (n, n) to the upper one, in place, and return the matrix."""
    for rows in panels(len(triangle)):
        triangle[: rows.start, rows] = triangle[rows, : rows.start].mT
        block = triangle[rows, rows]
        block.copy_(block.tril() + block.tril(-1).mT)
    return triangle


# -- factorisation ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BlockedFactor:
    """Cholesky factor in the memory of its matrix."""

    lower: Tensor
    """`L` with `A = L Lᵀ`, (n, n), float64, contiguous, zero above the diagonal."""

    def exact(self) -> Tensor:
        """Return the factor, (n, n), float64."""
        return self.lower

    def solve(self, right: Tensor) -> Tensor:
        """Return the solution of `A X = B`, (n, m), float64."""
        solution = right.clone()
        for rows in panels(len(solution)):
            part, done = solution[rows], slice(0, rows.start)
            part.addmm_(self.lower[rows, done], solution[done], alpha=-1.0)
            part.copy_(torch.linalg.solve_triangular(self.lower[rows, rows], part, upper=False))
        return _substitute_back(self.lower, solution)

    def refit_change(self, rows: Tensor, keep: int) -> Tensor:
        """Return what is added to the first rows of a projection when they replace the others.

        Args:
            rows: of the projection, (n, m), float64.
            keep: number of the first rows.
        """
        right = self.lower[keep:, :keep].mT @ rows[keep:]
        return _substitute_back(self.lower[:keep, :keep], right)

    def inverse(self, *, overwrite: bool) -> Tensor:
        """Return `A⁻¹`, (n, n), float64.

        Args:
            overwrite: replace the factor, which is then lost.
        """
        inverse = self.lower if overwrite else self.lower.clone()
        _invert_triangle(inverse)
        # L⁻ᵀ L⁻¹: a panel of rows needs no row above it.
        for rows in panels(len(inverse)):
            below = inverse[rows.start :]
            inverse[rows, : rows.stop] = below[:, rows].mT @ below[:, : rows.stop]
        return mirrored(inverse)


def factorise(matrix: Tensor) -> BlockedFactor | None:
    """Return the Cholesky factor of a matrix, which it replaces.

    Args:
        matrix: `A`, (n, n), float64, contiguous; its lower triangle is read.

    Returns:
        None if the matrix is not positive definite.
    """
    failures = []
    for columns in panels(len(matrix)):
        done = slice(0, columns.start)
        matrix[columns.start :, columns].addmm_(
            matrix[columns.start :, done], matrix[columns, done].mT, alpha=-1.0
        )
        block, failed = torch.linalg.cholesky_ex(matrix[columns, columns])
        matrix[columns, columns] = block
        failures.append(failed)
        below = matrix[columns.stop :, columns]
        if len(below):
            below.copy_(torch.linalg.solve_triangular(block.mT, below, upper=True, left=False))
    matrix.tril_()
    # Checked at the end, so that a GPU is waited for once.
    if bool(torch.stack(failures).any()) or not bool(torch.isfinite(matrix.sum())):
        return None
    return BlockedFactor(lower=matrix)


def _substitute_back(lower: Tensor, solution: Tensor) -> Tensor:
    """Overwrite (n, m) by the solution of `Lᵀ X = B`, and return it."""
    for rows in reversed(panels(len(solution))):
        part, done = solution[rows], slice(rows.stop, None)
        part.addmm_(lower[done, rows].mT, solution[done], alpha=-1.0)
        part.copy_(torch.linalg.solve_triangular(lower[rows, rows].mT, part, upper=True))
    return solution


def _invert_triangle(lower: Tensor) -> None:
    """Overwrite a lower triangular matrix, (n, n), by its inverse."""
    for rows in panels(len(lower)):
        block, left = lower[rows, rows], lower[rows, : rows.start]
        identity = torch.eye(len(block), dtype=lower.dtype, device=lower.device)
        block.copy_(torch.linalg.solve_triangular(block, identity, upper=False))
        left.copy_(block @ (left @ lower[: rows.start, : rows.start])).neg_()
