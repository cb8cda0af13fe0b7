"""The options that make up a method: selection, compensation, allocation and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intraslice_core.config import Allocation, Allocator, Target

CONSTRAINED_ALLOCATIONS: tuple[Allocation, ...] = ("auto", "uniform", "lagrangian")
"""Allocations that support constraints; the Fisher allocators of the paper do not."""
ALL_ALLOCATIONS: tuple[Allocation, ...] = (*CONSTRAINED_ALLOCATIONS, "fisher", "fisher_pca")

UnitScore = Literal["fluctuation", "wanda", "norm", "length"]
"""Score of a unit, which is a head or a neuron (`unit_removal.score_units`)."""
Validation = Literal["held_out", "left_out_source"]
"""Ways to choose dampings (docs/method.md, section 5)."""


@dataclass(frozen=True, kw_only=True)
class UnitRemoval:
    """Removal of whole heads and neurons by scores of single activations, without refit."""

    score: UnitScore
    inputs: Literal["dense", "compressed"]
    """Hidden states that the scores are measured on: the dense model's, or those of the layers
    compressed before."""
    bias_compensation: bool = False
    """Add the mean contribution of what is removed to the biases of the output projections."""
    shots: int = 1
    """Steps in which units are removed; before each, the rest is scored on what earlier steps
    left. More than one needs sizes that are known beforehand (allocator `uniform`)."""


@dataclass(frozen=True, kw_only=True)
class LayerRemoval:
    """Removal of whole decoder layers, the least influential first."""

    influence: Literal["layer", "model"]
    """Hidden states whose direction a layer must change to stay: from its own input to its output,
    measured once, or the model's last ones with and without it, measured again after every
    removal."""


@dataclass(frozen=True, kw_only=True)
class CompressionMethod:
    """One method as a set of options of docs/method.md, sections 3 to 5.

    Defaults are those of a method that refits nothing.
    """

    allocator: Allocator
    """Allocator that `auto` stands for."""
    targets: tuple[Target, ...]
    """Targets whose shapes the method can produce."""
    allocations: tuple[Allocation, ...] = ALL_ALLOCATIONS
    """Allocations that the method may be combined with."""
    pair_score: Literal["centered", "product", "energy_product", "magnitude"] = "magnitude"
    value_basis: Literal["weighted", "pca", "two_svds", "coordinates", "magnitude"] = "magnitude"
    """`coordinates` keeps value dimensions and rotary pairs as they are; it needs
    `measures_sensitivity`."""
    neuron_choice: Literal["obs", "energy", "leverage", "magnitude"] = "magnitude"
    measures_sensitivity: bool = False
    """Select by the sensitivity of the dense model instead of each layer's compressed inputs."""
    trains_masks: bool = False
    """Choose by trained masks if `mask_training` is given."""
    trained_allocator: Allocator | None = None
    """Allocator that `auto` stands for with trained masks; None for `allocator`."""
    cuts_heads: bool = False
    """Let the `lagrangian` allocator remove heads; needs their measured sensitivity."""
    compensate: bool = False
    """Refit the next projection by least squares; with `two_svds` that of the MLP alone."""
    dense_target: bool = False
    """Fit towards the dense hidden states (section 5) instead of the module's own output."""
    shrink_to_weights: bool = False
    """Let damping pull the solution towards the original weights instead of zero."""
    choice_damping: float = 0.01
    """Relative damping of the Gram matrix that neurons are selected by."""
    damping_per_dimension: bool = False
    """Scale damping by each dimension's energy instead of their mean."""
    residual_parts: bool = False
    """Cut what modules read and write of the residual stream, and neurons; attention dimensions
    stay whole."""
    units: UnitRemoval | None = None
    """Removal of whole units; None for methods that cut dimensions within heads."""
    layers: LayerRemoval | None = None
    """Removal of whole decoder layers; None for methods that keep all of them. `units` or the refit
    then narrow a further layer's MLP, to meet the budget."""
    slices_residual: bool = False
    """Slice the residual stream between the modules instead of the modules' inner dimensions."""
    takes_compressed_models: bool = True
    """Accept the result of an earlier compression."""
    damping_own: tuple[float, ...] = (0.01,)
    damping_correction: tuple[float, ...] = ()
    """Candidates for λ₁ and λ₂ of section 5; `validation` decides between several."""
    validation: Validation = "held_out"
    """Moments that choose λ₁ and λ₂: those of held-out sequences of all sources, or those of a
    group of sources by the fit on the others."""

    @property
    def uses_hidden_states(self) -> bool:
        """Return whether layers are compressed by the hidden states of the layers before them."""
        by_units = self.units is not None and self.units.inputs == "compressed"
        return self.compensate or self.slices_residual or by_units
