"""Magnitude pruning: the baseline that looks at weights alone and refits nothing."""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod

MAGNITUDE = CompressionMethod(
    pair_score="magnitude",
    value_basis="magnitude",
    neuron_choice="magnitude",
    allocator="uniform",
    measures_sensitivity=False,
    cuts_heads=False,
    compensate=False,
    dense_target=False,
    shrink_to_weights=False,
    choice_damping=0.01,
    damping_per_dimension=False,
    damping_own=(0.01,),
    damping_correction=(),
)
