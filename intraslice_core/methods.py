"""The methods by name: which choice of section 3 and which target of section 5 each one takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intraslice_core.config import Allocator, CompressionSettings, Method


@dataclass(frozen=True, kw_only=True)
class MethodPreset:
    """One method, spelled out."""

    pair_score: Literal["centered", "product", "magnitude"]
    value_basis: Literal["weighted", "pca", "magnitude"]
    neuron_choice: Literal["obs", "energy", "magnitude"]
    allocator: Allocator
    """What `auto` stands for."""
    learns: bool
    """Choices are made by what `estimation` learns of the dense model."""
    cuts_heads: bool
    """The `lagrangian` allocator may remove heads, whose order must have been learnt."""
    compensate: bool
    """Refit the next projection by least squares."""
    dense_target: bool
    """Aim at the dense stream (section 5, `dense`) and not at the module's own output."""
    shrink_to_weights: bool
    """Damping pulls the solution towards the original weights and not towards zero."""
    choice_damping: float
    """Relative damping of the Gram matrix that neurons are chosen by."""
    damping_per_dimension: bool
    """Damping is relative to each dimension's energy and not to their mean."""
    damping_own: tuple[float, ...]
    damping_correction: tuple[float, ...]
    """Candidates for section 5's λ₁ and λ₂; more than one are chosen by held-out error."""


PRESETS: dict[Method, MethodPreset] = {
    "intraslice": MethodPreset(
        pair_score="centered",
        value_basis="weighted",
        neuron_choice="obs",
        allocator="lagrangian",
        learns=True,
        cuts_heads=True,
        compensate=True,
        dense_target=True,
        shrink_to_weights=True,
        choice_damping=1e-4,
        damping_per_dimension=True,
        damping_own=(1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0),
        damping_correction=(0.1, 0.3, 1.0, 3.0, 10.0),
    ),
    "paper": MethodPreset(
        pair_score="product",
        value_basis="pca",
        neuron_choice="energy",
        allocator="fisher_pca",
        learns=False,
        cuts_heads=False,
        compensate=True,
        dense_target=False,
        shrink_to_weights=False,
        choice_damping=0.01,
        damping_per_dimension=False,
        damping_own=(0.01,),
        damping_correction=(),
    ),
    "magnitude": MethodPreset(
        pair_score="magnitude",
        value_basis="magnitude",
        neuron_choice="magnitude",
        allocator="uniform",
        learns=False,
        cuts_heads=False,
        compensate=False,
        dense_target=False,
        shrink_to_weights=False,
        choice_damping=0.01,
        damping_per_dimension=False,
        damping_own=(0.01,),
        damping_correction=(),
    ),
}


def resolve_allocator(settings: CompressionSettings) -> Allocator:
    """Who decides how much is removed where; `auto` leaves it to the method."""
    if settings.allocation == "auto":
        return PRESETS[settings.method].allocator
    return settings.allocation
