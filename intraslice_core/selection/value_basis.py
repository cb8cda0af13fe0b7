"""Basis of each KV group's values (docs/method.md, section 3b).

The heads of a KV group share one basis `B` (head_dim, keep): `Wv ← Wv B`. The output projection is
then refitted by least squares, so that only the span of `B` matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import linalg

BASIS_DAMPING = 1e-6
"""Relative damping of second moments; keeps S^{-1/2} finite for values of less than full rank."""


def group_second_moment(gram: Tensor, num_key_value_heads: int, head_dim: int) -> Tensor:
    """Return `S = Σ_h H[h, h]` over the query heads of each KV group.

    Args:
        gram: `E[o oᵀ]`, (num_attention_heads · head_dim, same).
        num_key_value_heads: KV heads.
        head_dim: value width of a head.

    Returns:
        (num_key_value_heads, head_dim, head_dim), dtype of `gram`.
    """
    heads = gram.shape[0] // head_dim
    blocks = gram.view(heads, head_dim, heads, head_dim)
    diagonal = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return diagonal.reshape(num_key_value_heads, -1, head_dim, head_dim).sum(1)


def pca_basis(moment: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the top eigenvectors of `S` and all eigenvalues (arXiv 2602.01975).

    Args:
        moment: `S`, (num_key_value_heads, head_dim, head_dim).
        keep: columns.

    Returns:
        Basis (num_key_value_heads, head_dim, keep) and spectrum (num_key_value_heads, head_dim),
        descending, both float64.

    Raises:
        NumericalError: if `S` is not finite or the decomposition fails.
    """
    values, vectors = linalg.eigenbasis(moment)
    return vectors[..., :keep], values


def weighted_basis(moment: Tensor, output: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the basis of least error in the module's output, and its spectrum (IntraSlice+).

    `B = orth(S^{-1/2} U_r)` with `U_r` the top left singular vectors of `S^{1/2} [W_h₁ … W_h_g]`.

    Args:
        moment: `S`, (num_key_value_heads, head_dim, head_dim).
        output: output projection by rows of heads, (num_attention_heads · head_dim, hidden_size).
        keep: columns.

    Returns:
        Basis (num_key_value_heads, head_dim, keep) and squared singular values
        (num_key_value_heads, head_dim), descending, both float64.

    Raises:
        NumericalError: if `S` is not finite or a decomposition fails.
    """
    directions, spectrum = weighted_directions(moment, output)
    return leading_basis(directions, keep), spectrum


def weighted_directions(moment: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return `S^{-1/2} U`, whose first r columns span the basis of width r, and the spectrum.

    Arguments, spectrum and errors are those of `weighted_basis`; the directions are
    (num_key_value_heads, head_dim, head_dim), float64.
    """
    groups, head_dim, _ = moment.shape
    root, inverse_root = linalg.square_roots(moment, BASIS_DAMPING)
    per_group = output.to(root).view(groups, -1, head_dim, output.shape[-1])
    wide = per_group.transpose(1, 2).flatten(2)
    vectors, spectrum = linalg.leading_left_singular_vectors(root @ wide, head_dim)
    return inverse_root @ vectors, spectrum


@dataclass(frozen=True, kw_only=True)
class ValueFactors:
    """Factors of every KV group's values: `v` is replaced by `R Bᵀv`."""

    basis: Tensor
    """`B`, orthonormal columns, (num_key_value_heads, head_dim, keep), float64."""
    expansion: Tensor
    """`R`, (num_key_value_heads, head_dim, keep), float64; the output projection reads it."""
    spectrum: Tensor
    """Squared singular values `Σ'²`, (num_key_value_heads, head_dim), descending, float64."""


def two_svds(moment: Tensor, output: Tensor, keep: int) -> ValueFactors:
    """Return the factors of least error of values and output projection (arXiv 2408.09632).

    The publication decomposes `C^{1/2} Wv = U Σ Vᵀ`, with `C = E[x xᵀ]` of the attention's inputs,
    then `Σ Vᵀ Wo = U' Σ' V'ᵀ`, and returns `C^{-1/2} U U'_r` and `Σ'_r V'_rᵀ`. The first of them is
    `Wv D` with `D = V Σ⁻¹ U'_r`, and both V and Σ follow from `M = Wvᵀ C Wv = E[v vᵀ]`: C itself is
    not needed. `D` spans the basis of `weighted_directions(M, Wo)`, and with any basis `B` of its
    span, the second factor is `Rᵀ Wo` with `R = M B (Bᵀ M B)⁻¹`.

    The squared error `Σ_h E‖(v - R Bᵀv) W_h‖²` over the query heads of a group is the sum of the
    squared singular values beyond `keep`.

    Args:
        moment: `M`, (num_key_value_heads, head_dim, head_dim).
        output: output projection by rows of heads, (num_attention_heads · head_dim, hidden_size).
        keep: columns.

    Raises:
        NumericalError: if `M` is not finite or a decomposition fails.
    """
    directions, spectrum = weighted_directions(moment, output)
    basis = leading_basis(directions, keep)
    wide = linalg.symmetrise(moment)
    factor = linalg.damped_cholesky(basis.mT @ wide @ basis, BASIS_DAMPING)
    expansion = factor.solve(basis.mT @ wide).mT
    return ValueFactors(basis=basis, expansion=expansion, spectrum=spectrum)


def leading_basis(directions: Tensor, keep: int) -> Tensor:
    """Return an orthonormal basis of the first directions, (num_key_value_heads, head_dim, keep).

    Raises:
        NumericalError: if it is not finite.
    """
    return linalg.orthonormal_columns(directions[..., :keep])


def magnitude_basis(value: Tensor, output: Tensor, num_key_value_heads: int, keep: int) -> Tensor:
    """Return the unit vectors of the value coordinates with the largest weight norms.

    Args:
        value: v_proj weight, (num_key_value_heads · head_dim, hidden_size).
        output: output projection by rows of heads, (num_attention_heads · head_dim, hidden_size).
        num_key_value_heads: KV heads.
        keep: coordinates to keep.

    Returns:
        Unit columns, (num_key_value_heads, head_dim, keep), float64.
    """
    rows = value.double().square().sum(-1).view(num_key_value_heads, -1)
    head_dim = rows.shape[-1]
    columns = output.double().square().sum(-1).view(num_key_value_heads, -1, head_dim).sum(1)
    kept_dims = (rows * columns).topk(keep, dim=-1).indices.sort(dim=-1).values
    identity = torch.eye(head_dim, dtype=torch.float64, device=value.device)
    return identity[kept_dims].mT
