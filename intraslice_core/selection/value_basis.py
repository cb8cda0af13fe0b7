"""The basis each KV group's values are projected on (section 3b of docs/method.md).

The heads of a KV group share one basis `B` (head_dim, keep): `Wv ← Wv B`, and what follows is
refitted by least squares, so that only the span of `B` matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intraslice_core import linalg

BASIS_DAMPING = 1e-6
"""Only keeps S^{-1/2} finite where the values have less than full rank."""


def group_second_moment(gram: Tensor, num_key_value_heads: int, head_dim: int) -> Tensor:
    """`S = Σ_h H[h, h]` over each group's query heads: (num_key_value_heads, head_dim, head_dim).

    Args:
        gram: `E[o oᵀ]`, (num_attention_heads · head_dim, same).
        num_key_value_heads: KV heads.
        head_dim: value width of a head.
    """
    heads = gram.shape[0] // head_dim
    blocks = gram.view(heads, head_dim, heads, head_dim)
    diagonal = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return diagonal.reshape(num_key_value_heads, -1, head_dim, head_dim).sum(1)


def pca_basis(moment: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The paper's: top eigenvectors of S, and all eigenvalues.

    Args:
        moment: (num_key_value_heads, head_dim, head_dim).
        keep: columns.

    Returns:
        Basis (num_key_value_heads, head_dim, keep) and spectrum (num_key_value_heads, head_dim).
    """
    values, vectors = linalg.eigenbasis(moment)
    return vectors[..., :keep], values


def weighted_basis(moment: Tensor, output: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Ours: the basis that is optimal for the module's output.

    `B = orth(S^{-1/2} U_r)`, U_r the top left singular vectors of S^{1/2}[W_o,h₁ … W_o,h_g].

    Args:
        moment: `S`, (num_key_value_heads, head_dim, head_dim).
        output: output projection by rows of heads, (num_attention_heads · head_dim, hidden_size).
        keep: columns.

    Returns:
        Basis (num_key_value_heads, head_dim, keep) and spectrum (num_key_value_heads, head_dim).
    """
    directions, spectrum = weighted_directions(moment, output)
    return leading_basis(directions, keep), spectrum


def weighted_directions(moment: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """`S^{-1/2} U`, whose first r columns span the basis of width r, and the spectrum.

    Arguments and shapes as in `weighted_basis`; the directions are (…, head_dim, head_dim).
    """
    groups, head_dim, _ = moment.shape
    root, inverse_root = linalg.square_roots(moment, BASIS_DAMPING)
    per_group = output.to(root).view(groups, -1, head_dim, output.shape[-1])
    wide = per_group.transpose(1, 2).flatten(2)
    vectors, spectrum = linalg.leading_left_singular_vectors(root @ wide, head_dim)
    return inverse_root @ vectors, spectrum


def leading_basis(directions: Tensor, keep: int) -> Tensor:
    """Orthonormal basis of the first `keep` directions, (num_key_value_heads, head_dim, keep)."""
    return linalg.orthonormal_columns(directions[..., :keep])


def magnitude_basis(value: Tensor, output: Tensor, num_key_value_heads: int, keep: int) -> Tensor:
    """The naive baseline: the coordinates of largest weight norm.

    Args:
        value: v_proj weight, (num_key_value_heads · head_dim, hidden_size).
        output: (num_attention_heads · head_dim, hidden_size), as for `weighted_basis`.
        num_key_value_heads: KV heads.
        keep: coordinates.

    Returns:
        Unit columns, (num_key_value_heads, head_dim, keep), float64.
    """
    rows = value.double().square().sum(-1).view(num_key_value_heads, -1)
    head_dim = rows.shape[-1]
    columns = output.double().square().sum(-1).view(num_key_value_heads, -1, head_dim).sum(1)
    kept = (rows * columns).topk(keep, dim=-1).indices.sort(dim=-1).values
    identity = torch.eye(head_dim, dtype=torch.float64, device=value.device)
    return identity[kept].mT
