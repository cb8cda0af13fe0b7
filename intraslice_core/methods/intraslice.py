"""IntraSlice as published (arXiv 2602.01975): energy and PCA selection, Fisher allocation."""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod

INTRASLICE = CompressionMethod(
    pair_score="product",
    value_basis="pca",
    neuron_choice="energy",
    allocator="fisher_pca",
    measures_sensitivity=False,
    cuts_heads=False,
    compensate=True,
    dense_target=False,
    shrink_to_weights=False,
    choice_damping=0.01,
    damping_per_dimension=False,
    damping_own=(0.01,),
    damping_correction=(),
)
