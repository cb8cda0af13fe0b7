"""The methods by name: which choice of section 3 and which target of section 5 each one takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intraslice_core.config import Method


@dataclass(frozen=True, kw_only=True)
class MethodPreset:
    """One method, spelled out."""

    pair_score: Literal["centered", "product", "magnitude"]
    value_basis: Literal["weighted", "pca", "magnitude"]
    neuron_choice: Literal["obs", "energy", "magnitude"]
    compensate: bool
    """Refit the next projection by least squares."""
    dense_target: bool
    """Aim at the dense stream (section 5, `dense`) and not at the module's own output."""
    shrink_to_weights: bool
    """Damping pulls the solution towards the original weights and not towards zero."""
    damping_own: float
    damping_correction: tuple[float, ...]


PRESETS: dict[Method, MethodPreset] = {
    "intraslice": MethodPreset(
        pair_score="centered",
        value_basis="weighted",
        neuron_choice="obs",
        compensate=True,
        dense_target=True,
        shrink_to_weights=True,
        damping_own=1e-4,
        damping_correction=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    ),
    "paper": MethodPreset(
        pair_score="product",
        value_basis="pca",
        neuron_choice="energy",
        compensate=True,
        dense_target=False,
        shrink_to_weights=False,
        damping_own=0.01,
        damping_correction=(),
    ),
    "magnitude": MethodPreset(
        pair_score="magnitude",
        value_basis="magnitude",
        neuron_choice="magnitude",
        compensate=False,
        dense_target=False,
        shrink_to_weights=False,
        damping_own=0.01,
        damping_correction=(),
    ),
}
