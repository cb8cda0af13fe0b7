"""Basis of queries and keys in layers without RoPE (docs/method.md, section 3c).

Without RoPE a score is `q kᵀ`, so that any basis may be cut, not only pairs: `q A (k B)ᵀ` with two
matrices (head_dim, keep) that `Wq` and `Wk` absorb. The heads of a KV group share both, since they
share the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import linalg

QUERY_DAMPING = 1e-3
"""Relative damping of the query moment, which is estimated from a few sequences."""


@dataclass(frozen=True, kw_only=True)
class ScoreBasis:
    """Matrices that queries and keys of each KV group are multiplied by."""

    query: Tensor
    """`A`, (num_key_value_heads, head_dim, keep), float64."""
    key: Tensor
    """`B`, orthonormal columns, (num_key_value_heads, head_dim, keep), float64."""


@dataclass(frozen=True, kw_only=True)
class ScoreDirections:
    """Directions of which the first r span the basis of width r, for every r."""

    query: Tensor
    """`S^{-1/2} U`, (num_key_value_heads, head_dim, head_dim), float64."""
    key: Tensor
    """`S^{1/2} U`, (num_key_value_heads, head_dim, head_dim), float64."""
    spectrum: Tensor
    """Squared error of the output that each direction prevents, descending,
    (num_key_value_heads, head_dim), float64."""


def score_directions(query: Tensor, key: Tensor) -> ScoreDirections:
    """Return the directions of least error in the output of the attention.

    `S` and `T` are the partial traces of `Λ = E[q qᵀ ⊗ E Eᵀ]`, and `U` the eigenvectors of
    `S^{1/2} T S^{1/2}`. Keeping r directions leaves the error `Σ_{k > r} λ_k / tr Λ`. `S` alone is
    damped: where keys have rank r, the error of r directions is exactly zero.

    Args:
        query: `S`, (num_key_value_heads, head_dim, head_dim).
        key: `T`, of the same shape and trace.

    Raises:
        NumericalError: if a moment is not finite or a decomposition fails.
    """
    root, inverse_root = linalg.square_roots(query, QUERY_DAMPING)
    values, vectors = linalg.eigenbasis(root @ key.to(root) @ root)
    trace = query.to(root).diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    # A group whose scores have no effect has a spectrum of zeros.
    trace = torch.where(trace > 0, trace, torch.ones_like(trace))
    return ScoreDirections(
        query=inverse_root @ vectors, key=root @ vectors, spectrum=values / trace
    )


def leading_score_basis(query: Tensor, key: Tensor, keep: int) -> ScoreBasis:
    """Return the basis of the first `keep` directions.

    Only `A Bᵀ` matters. Keys get orthonormal columns, so that their values do not grow.

    Args:
        query: directions from `score_directions`, (num_key_value_heads, head_dim, head_dim).
        key: directions of the same shape.
        keep: dimensions of a query or key head to keep.

    Raises:
        NumericalError: if the basis is not finite.
    """
    basis = linalg.orthonormal_columns(key[..., :keep])
    triangle = basis.mT @ key[..., :keep]
    return ScoreBasis(query=query[..., :keep] @ triangle.mT, key=basis)
