"""IntraSlice as published (arXiv 2602.01975): energy and PCA selection, Fisher allocation."""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod

INTRASLICE = CompressionMethod(
    allocator="fisher_pca",
    targets=("research",),
    pair_score="product",
    value_basis="pca",
    neuron_choice="energy",
    compensate=True,
)
