"""Factorisations in float32, refined and checked in float64 (docs/method.md, section 2).

For GPUs whose float64 rate is 1/32 or 1/64 of float32's. A factorisation costs `n³` operations and
more, a product with a few vectors `2n²` each: the factorisation is done in
float32, and float64 products with some vectors check it. Where a check fails the functions return
None, and the caller factorises in float64.

Sources: iterative refinement as in N. J. Higham, Accuracy and Stability of Numerical Algorithms,
2nd edition, chapter 12; eigenvectors as in T. Ogita and K. Aishima, Iterative refinement for
symmetric eigenvalue decomposition, Japan J. Indust. Appl. Math. 35 (2018) and II, 36 (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core.device import full_float32

PROBES = 16
"""Number of random combinations of columns by which results are checked."""
FACTOR_TOLERANCE = 1e-2
"""Largest relative error of a float32 factor's solutions, the gain of one refinement."""
SOLUTION_TOLERANCE = 1e-4
"""Largest relative error of a solution, in the norm of the matrix (see `relative_error`)."""
INVERSE_TOLERANCE = 1e-3
"""Largest relative error of a float32 inverse applied to random vectors, in the same norm."""
EIGEN_TOLERANCE = 1e-6
"""Largest residual of an eigenvector, root mean square, relative to the typical eigenvalue."""
ORTHONORMALITY = 1e-5
"""Largest deviation of a column of `Xᵀ X` from that of `I`, root mean square."""
REFINEMENTS = 5
"""Largest number of refinements of a solution; fewer of many columns, which cost more."""
EIGEN_REFINEMENTS = 2
"""Refinements of an eigenbasis after which float64 costs as much."""
DOMINANT = 64.0
"""Multiple of the mean of the smaller eigenvalues from which eigenvectors are deflated."""
LARGEST_DEFLATION = 16
"""Fraction of the eigenvectors, 1 in this many, that are deflated at most."""
MIXING = 1e-2
"""Largest rotation between two eigenvectors that is corrected to first order."""
LARGEST_CLUSTER = 1 / 8
"""Largest cluster of eigenvalues that is solved in float64, as a share of the matrix."""
_BLOCK_ROWS = 1024
_LARGEST_EXPONENT = 50
"""Largest power of two by which rows are scaled, so that float32 inverses do not overflow."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A symmetric positive definite matrix that shares its storage with others.

    Several dampings of a matrix differ in the diagonal alone.
    """

    matrix: Tensor
    """Entries off the diagonal, (n, n), float64; its own diagonal may change."""
    diagonal: Tensor
    """(n,), float64."""

    def times(self, vectors: Tensor) -> Tensor:
        """Return the product with (n, m), float64."""
        difference = (self.diagonal - self.matrix.diagonal()).unsqueeze(-1)
        return (self.matrix @ vectors).addcmul_(difference, vectors)

    def dense(self) -> Tensor:
        """Return the matrix in a new tensor, (n, n), float64."""
        dense = self.matrix.clone()
        dense.diagonal().copy_(self.diagonal)
        return dense


@dataclass(frozen=True, kw_only=True)
class RoundedFactor:
    """Cholesky factor of `S A S` in float32, which makes solutions to be refined."""

    system: System
    """`A`."""
    lower: Tensor
    """(n, n), float32."""
    scale: Tensor
    """Diagonal of `S`, powers of two that bring the diagonal of `S A S` to [1/2, 2), float64."""
    error: float
    """Relative error of solutions for random right-hand sides, in the norm of `S A S`."""

    @full_float32()
    def approximate(self, right: Tensor) -> Tensor:
        """Return the unrefined solution for (n, m), float64."""
        return _approximate(self.lower, self.scale, right)

    def solve(self, right: Tensor) -> Tensor | None:
        """Return the solution for (n, m), float64, refined until it is precise.

        Returns:
            None if more refinements are needed than cost less than a solution in float64, or if
            they do not converge.
        """
        solution = self.approximate(right)
        probes = _probes(right.shape[1], right.device)
        error = self.relative_error(solution, right, probes)
        for _ in range(_refinements(*right.shape)):
            if error <= SOLUTION_TOLERANCE:
                return solution
            solution += self.approximate(right - self.system.times(solution))
            previous, error = error, self.relative_error(solution, right, probes)
            if not error <= previous / 2:
                return None
        return solution if error <= SOLUTION_TOLERANCE else None

    def relative_error(self, solution: Tensor, right: Tensor, probes: Tensor | None) -> float:
        """Return the error of a solution in the norm of `A`, relative to the solution.

        With the residual `R = B - A X` it is `√(tr(Rᵀ A⁻¹ R) / tr(Xᵀ B))`, where `A⁻¹` is that of
        the rounded factor. In a regression its square is the increase of the squared error relative
        to the energy that the solution explains.

        Args:
            solution: `X`, (n, m).
            right: `B`, (n, m).
            probes: combinations of columns to measure it on, (m, p); None for the columns.
        """
        if probes is not None:
            solution, right = solution @ probes, right @ probes
        residual = right - self.system.times(solution)
        return _ratio((residual * self.approximate(residual)).sum(), (right * solution).sum())

    def leading(self, width: int) -> RoundedFactor:
        """Return the factor of the first rows and columns, which shares all storage."""
        system = System(
            matrix=self.system.matrix[:width, :width], diagonal=self.system.diagonal[:width]
        )
        lower = self.lower[:width, :width]
        return RoundedFactor(system=system, lower=lower, scale=self.scale[:width], error=self.error)

    @full_float32()
    def inverse(self) -> Tensor | None:
        """Return `A⁻¹`, (n, n), float32; None if the factor is not precise enough."""
        if self.error > INVERSE_TOLERANCE:
            return None
        inverse = torch.cholesky_inverse(self.lower)
        scale = self.scale.to(inverse.dtype)
        return inverse.mul_(scale).mul_(scale.unsqueeze(-1))

    @full_float32()
    def inverts(self, inverse: Tensor, rows: Tensor) -> bool:
        """Report whether a matrix is the inverse of some rows and columns of `A`.

        Args:
            inverse: (k, k), float32.
            rows: (k,), int64.
        """
        scale = self.scale[rows].unsqueeze(-1)
        right = signs(len(rows), PROBES, rows.device) / scale
        solution = _product(inverse, right)
        embedded = right.new_zeros(len(self.scale), right.shape[1]).index_copy_(0, rows, solution)
        residual = right - self.system.times(embedded)[rows]
        correction = _product(inverse, residual)
        error = _ratio((residual * correction).sum(), (right * solution).sum())
        return error <= INVERSE_TOLERANCE

    def exact(self) -> Tensor:
        """Return the factor in float64 without scaling, (n, n): `L Lᵀ` is `A` within rounding."""
        return self.lower.to(self.scale).div_(self.scale.unsqueeze(-1))


def rounded_factor(system: System) -> RoundedFactor | None:
    """Factorise in float32; None if the factor is not precise enough to refine solutions.

    Rows and columns are scaled by powers of two first, which rounds nothing and keeps the entries
    in the range of float32.
    """
    if not bool((system.diagonal > 0).all()):
        return None
    scale = torch.exp2(-(system.diagonal.log2() / 2).round())
    if not bool((scale.log2().abs() <= _LARGEST_EXPONENT).all()):
        return None
    with full_float32():
        lower, failed = torch.linalg.cholesky_ex(_scaled(system, scale))
        if bool(failed) or not bool(torch.isfinite(lower.sum())):
            return None
        right = signs(len(scale), PROBES, scale.device) / scale.unsqueeze(-1)
        solution = _approximate(lower, scale, right)
        residual = right - system.times(solution)
        correction = _approximate(lower, scale, residual)
    error = _ratio((residual * correction).sum(), (right * solution).sum())
    if not error <= FACTOR_TOLERANCE:
        return None
    return RoundedFactor(system=system, lower=lower, scale=scale, error=error)


def _scaled(system: System, scale: Tensor) -> Tensor:
    """Return `S A S` in float32, a block of rows at a time."""
    scaled = torch.empty(system.matrix.shape, dtype=torch.float32, device=scale.device)
    for start in range(0, len(scale), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        scaled[rows] = system.matrix[rows] * scale[rows, None] * scale
    scaled.diagonal().copy_(system.diagonal * scale.square())
    return scaled


def _approximate(lower: Tensor, scale: Tensor, right: Tensor) -> Tensor:
    """Return the solution for (n, m) by a float32 factor of `S A S`, float64."""
    right = right * scale.unsqueeze(-1)
    size = _powers_of_two(right.abs().amax(0))
    solution = torch.cholesky_solve((right / size).to(lower.dtype), lower)
    return solution.to(right.dtype).mul_(size).mul_(scale.unsqueeze(-1))


@full_float32()
def rounded_product(left: Tensor, right: Tensor) -> Tensor:
    """Return a product computed in float32, (…, n, m), float64.

    Args:
        left: (…, n, k), float64.
        right: (k, m), float64, columns of any size.
    """
    return _product(left.to(torch.float32), right)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of a float32 matrix with float64 columns of any size, float64."""
    size = _powers_of_two(right.abs().amax(0))
    return (left @ (right / size).to(left.dtype)).to(right.dtype).mul_(size)


def _powers_of_two(sizes: Tensor) -> Tensor:
    """Return the powers of two next to positive numbers, and 1 for others, same shape."""
    usable = torch.isfinite(sizes) & (sizes > 0)
    return torch.where(usable, torch.exp2(sizes.log2().round()), torch.ones_like(sizes))


def _ratio(error: Tensor, energy: Tensor) -> float:
    """Return `√(error / energy)`, infinite where that is not a number or negative; 0 of zeros."""
    squared = float(error / energy.clamp_min(torch.finfo(energy.dtype).tiny))
    return math.sqrt(max(squared, 0.0)) if math.isfinite(squared) else math.inf


def _refinements(rows: int, columns: int) -> int:
    """Return how many refinements cost less than a factorisation and a solution in float64.

    They cost `2n²m` operations in float64 each, the other `n³ / 3 + 2n²m`.
    """
    return min(int(1 + rows / (6 * max(columns, 1))), REFINEMENTS)


def signs(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return random signs, (rows, columns), float64, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2, (rows, columns), generator=generator, dtype=torch.int8)
    return drawn.to(device).to(torch.float64).mul_(2).sub_(1)


def _probes(columns: int, device: torch.device) -> Tensor | None:
    """Return combinations of columns to check, (columns, PROBES); None for few columns."""
    return signs(columns, PROBES, device) if columns > 2 * PROBES else None


# -- eigenvectors ------------------------------------------------------------------------------


@full_float32()
def refined_eigenbasis(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return eigenvalues and eigenvectors of a second moment, (n, n), float64.

    Eigenvectors of float32 are refined by the iteration of Ogita and Aishima.

    Returns:
        (n,), ascending, and (n, n), float64; None if the result is not precise enough.
    """
    vectors, typical = _first_basis(matrix)
    if not typical > 0.0:
        return None
    target = EIGEN_TOLERANCE * typical * math.sqrt(len(matrix))
    for _ in range(EIGEN_REFINEMENTS):
        refined = _refined(vectors, matrix @ vectors, target)
        if refined is None:
            return None
        values, vectors = refined
        if _residual(matrix, values, vectors) <= target and _deviation(vectors) <= ORTHONORMALITY:
            order = values.argsort()
            return values[order], vectors[:, order]
    return None


def _first_basis(matrix: Tensor) -> tuple[Tensor, float]:
    """Return eigenvectors to float32's precision relative to the typical eigenvalue, and that one.

    float32 finds eigenvectors to its precision relative to the largest eigenvalue. Where some are
    much larger than the others, as of massive activations, their vectors `Q` are found first, and
    the others as eigenvectors of `(I - QQᵀ) A (I - QQᵀ)`.

    Returns:
        (n, n), float64, in the order of ascending eigenvalues, roughly, and the mean of the
        eigenvalues without the dominant ones.
    """
    values, vectors = _rounded_eigh(matrix)
    means = values.clamp_min(0.0).cumsum(0) / torch.arange(
        1, len(values) + 1, dtype=values.dtype, device=values.device
    )
    plain = int((values <= DOMINANT * means).nonzero().max()) + 1
    count = min(len(values) - plain, len(values) // LARGEST_DEFLATION)
    typical = float(means[len(values) - count - 1])
    if count == 0:
        return vectors, typical
    leading = torch.linalg.qr(matrix @ vectors[:, -count:]).Q
    image = matrix @ leading
    inner, rotation = torch.linalg.eigh(leading.mT @ image)
    leading, image = leading @ rotation, image @ rotation
    # Q has the eigenvalue 0 in that matrix; it is moved above all others, which are kept.
    rest = matrix - leading @ image.mT - image @ leading.mT + (leading * inner) @ leading.mT
    shift = 2.0 * max(float(values[-count - 1]), typical)
    _, others = _rounded_eigh(rest + (shift * leading) @ leading.mT)
    return torch.cat((others[:, :-count], leading), dim=1), typical


def _rounded_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors computed in float32, as float64."""
    size = _powers_of_two(matrix.abs().amax())
    values, vectors = torch.linalg.eigh((matrix / size).to(torch.float32))
    return values.to(matrix.dtype) * size, vectors.to(matrix.dtype)


def _refined(vectors: Tensor, image: Tensor, target: float) -> tuple[Tensor, Tensor] | None:
    """Return eigenvalues, and eigenvectors after one iteration.

    The correction `E` of `X (I + E)` has the entries `(s_ij + λ_j r_ij) / (λ_j - λ_i)` with
    `S = Xᵀ A X` and `R = I - Xᵀ X`, or `r_ij / 2` where both eigenvalues are equal. Off the
    diagonal that numerator is `x_iᵀ (A x_j - λ_j x_j)`: of all products `A X` alone must be in
    float64.

    Args:
        vectors: `X`, (n, n), float64.
        image: `A X`, (n, n), float64.
        target: residual of the basis that is small enough.

    Returns:
        (n,) and (n, n), float64; None if a cluster of eigenvalues is too large.
    """
    values = _rayleigh(vectors, image)
    order = values.argsort()
    vectors, image, values = vectors[:, order], image[:, order], values[order]
    couplings = _couplings(vectors, image, values)
    negligible = target / (2 * len(values))
    clusters = _clusters(couplings, values, negligible)
    if clusters:
        if max(part.stop - part.start for part in clusters) > LARGEST_CLUSTER * len(values):
            return None
        for part in clusters:
            _rotate(vectors[:, part], image[:, part], values[part].mean())
        values = _rayleigh(vectors, image)
        couplings = _couplings(vectors, image, values)
    correction = _correction(vectors, couplings, values, negligible)
    return values, vectors + _product(vectors.to(correction.dtype), correction.to(vectors.dtype))


def _rayleigh(vectors: Tensor, image: Tensor) -> Tensor:
    """Return the Rayleigh quotient of every column, (n,), float64."""
    return (vectors * image).sum(0) / vectors.square().sum(0)


def _couplings(vectors: Tensor, image: Tensor, values: Tensor) -> Tensor:
    """Return `Xᵀ (A X - X diag(λ))`, (n, n), float64 with the precision of float32."""
    return _product(vectors.to(torch.float32).mT, image - vectors * values)


def _clusters(couplings: Tensor, values: Tensor, negligible: float) -> list[slice]:
    """Return ranges of eigenvalues whose vectors are mixed too much for a first-order correction.

    Args:
        couplings: (n, n).
        values: (n,), ascending.
        negligible: size of couplings that need no correction.
    """
    sizes = torch.maximum(couplings.abs(), couplings.mT.abs())
    mixed = (sizes > MIXING * (values - values.unsqueeze(-1)).abs()) & (sizes > negligible)
    positions = torch.arange(len(values), device=values.device)
    last_partners = torch.where(mixed, positions, -1).amax(1).tolist()
    clusters: list[slice] = []
    start, end = 0, -1
    for position, partner in enumerate([*last_partners, -1]):
        if position > end:
            if end > start:
                clusters.append(slice(start, end + 1))
            start = end = position
        end = max(end, partner)
    return clusters


def _rotate(vectors: Tensor, image: Tensor, value: Tensor) -> None:
    """Rotate the vectors of a cluster to the eigenvectors in their span, in place.

    Args:
        vectors: some columns of `X`, (n, k), float64.
        image: the same of `A X`.
        value: mean of their eigenvalues, around which deviations from orthonormality matter least.
    """
    overlap = vectors.mT @ vectors
    overlap.diagonal().sub_(1.0)
    inner = vectors.mT @ image - value * overlap
    rotation = torch.linalg.eigh((inner + inner.mT) / 2).eigenvectors
    vectors.copy_(vectors @ rotation)
    image.copy_(image @ rotation)


def _correction(vectors: Tensor, couplings: Tensor, values: Tensor, negligible: float) -> Tensor:
    """Return `E`, (n, n), float32; eigenvalues that differ by less than `negligible` are equal."""
    rounded = vectors.to(torch.float32)
    overlap = rounded.mT @ rounded
    halves = overlap.mul_(-0.5)
    halves.diagonal().copy_((1.0 - vectors.square().sum(0)) / 2)
    gaps = values - values.unsqueeze(-1)
    sizes = torch.maximum(couplings.abs(), couplings.mT.abs())
    apart = (sizes <= MIXING * gaps.abs()) & (gaps.abs() > negligible)
    quotients = couplings / torch.where(apart, gaps, torch.ones_like(gaps))
    return torch.where(apart, quotients.to(halves.dtype), halves)


def _residual(matrix: Tensor, values: Tensor, vectors: Tensor) -> float:
    """Return an estimate of `‖A X - X diag(λ)‖`, Frobenius norm."""
    probes = signs(len(values), PROBES, values.device)
    residual = matrix @ (vectors @ probes) - vectors @ (probes * values.unsqueeze(-1))
    return float(torch.linalg.vector_norm(residual)) / math.sqrt(PROBES)


def _deviation(vectors: Tensor) -> float:
    """Return an estimate of `‖Xᵀ X - I‖` per column, root mean square."""
    probes = signs(len(vectors), PROBES, vectors.device)
    difference = vectors.mT @ (vectors @ probes) - probes
    return float(torch.linalg.vector_norm(difference)) / math.sqrt(PROBES * len(vectors))
