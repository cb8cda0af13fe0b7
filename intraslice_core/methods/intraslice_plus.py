"""IntraSlice+, the default: sensitivity-weighted selection, dense targets, Lagrangian ratios."""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod

INTRASLICE_PLUS = CompressionMethod(
    allocator="lagrangian",
    targets=("research", "adaptive", "stock"),
    pair_score="centered",
    value_basis="weighted",
    neuron_choice="obs",
    measures_sensitivity=True,
    cuts_heads=True,
    compensate=True,
    dense_target=True,
    shrink_to_weights=True,
    choice_damping=1e-4,
    damping_per_dimension=True,
    damping_own=(1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0),
    damping_correction=(0.1, 0.3, 1.0, 3.0, 10.0),
    validation="left_out_source",
)
