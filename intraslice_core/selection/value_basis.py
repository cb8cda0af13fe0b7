"""Basis of each KV group's values (docs/method.md, section 3b).

The heads of a KV group share one basis `B` (head_dim, keep): `Wv ← Wv B`. The output projection is
then refitted by least squares, so that only the span of `B` matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intraslice_core import linalg

BASIS_DAMPING = 1e-6
"""Relative damping of `S`; keeps S^{-1/2} finite where the values have less than full rank."""


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
