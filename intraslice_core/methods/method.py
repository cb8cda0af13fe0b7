"""The options that make up a method: selection, compensation and allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intraslice_core.config import Allocator

Validation = Literal["held_out", "left_out_source"]
"""Ways to choose dampings (docs/method.md, section 5)."""


@dataclass(frozen=True, kw_only=True)
class CompressionMethod:
    """One method as a set of options of docs/method.md, sections 3 to 5."""

    pair_score: Literal["centered", "product", "magnitude"]
    value_basis: Literal["weighted", "pca", "magnitude"]
    neuron_choice: Literal["obs", "energy", "magnitude"]
    allocator: Allocator
    """Allocator that `auto` stands for."""
    measures_sensitivity: bool
    """Select by the sensitivity of the dense model instead of each layer's compressed inputs."""
    cuts_heads: bool
    """Let the `lagrangian` allocator remove heads; needs their measured sensitivity."""
    compensate: bool
    """Refit the next projection by least squares."""
    dense_target: bool
    """Fit towards the dense hidden states (section 5) instead of the module's own output."""
    shrink_to_weights: bool
    """Let damping pull the solution towards the original weights instead of zero."""
    choice_damping: float
    """Relative damping of the Gram matrix that neurons are selected by."""
    damping_per_dimension: bool
    """Scale damping by each dimension's energy instead of their mean."""
    damping_own: tuple[float, ...]
    damping_correction: tuple[float, ...]
    """Candidates for λ₁ and λ₂ of section 5; `validation` decides between several."""
    validation: Validation = "held_out"
    """Moments that choose λ₁ and λ₂: those of held-out sequences of all sources, or those of a
    group of sources by the fit on the others."""
