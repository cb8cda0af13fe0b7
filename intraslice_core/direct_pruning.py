"""Compression of one layer without refit: by weight norms, or whole units by their scores."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.hidden_states import LayerContext, LayerPass
from intraslice_core.magnitude_pruning import prune_by_magnitude
from intraslice_core.plan import LayerPlan
from intraslice_core.refit import ModuleOutcome
from intraslice_core.selection import spectra
from intraslice_core.sensitivity.activations import ActivationPass
from intraslice_core.unit_removal import BiasCompensation, LayerUnits, remove_units, score_units


@dataclass(frozen=True, kw_only=True)
class DirectOutcome:
    """Measurements of a layer that was cut without refit."""

    kept_pairs: Tensor
    """(num_key_value_heads, pairs), ascending, int64."""
    attention: ModuleOutcome
    mlp: ModuleOutcome


def prune_directly(
    dense: LayerWeights, plan: LayerPlan, layer_pass: LayerPass, context: LayerContext
) -> tuple[LayerWeights, DirectOutcome]:
    """Cut a layer to the plan's sizes; the hidden states do not advance.

    Returns:
        The layer, not yet rounded to the dtype of the saved model, and its measurements.

    Raises:
        NumericalError: naming the module, if an activation is not finite.
    """
    method = context.method.units
    if method is None:
        context.before_batch(0.0)
        weights, pairs = prune_by_magnitude(dense, plan, context.settings)
        return weights, _outcome(pairs, ModuleOutcome(module="mlp"))
    units = context.units
    if units is None:
        units = _measured(dense, layer_pass, context)
    else:
        context.before_batch(0.0)
    bias: BiasCompensation = "none"
    if method.bias_compensation:
        bias = "added" if context.adds_output_biases else "existing"
    weights, pairs = remove_units(dense, plan, context.settings, units, bias=bias)
    return weights, _outcome(pairs, _mlp_outcome(units, plan))


def _outcome(pairs: Tensor, mlp: ModuleOutcome) -> DirectOutcome:
    return DirectOutcome(kept_pairs=pairs, attention=ModuleOutcome(module="attention"), mlp=mlp)


def _measured(dense: LayerWeights, layer_pass: LayerPass, context: LayerContext) -> LayerUnits:
    """Return scores on the hidden states that the layers compressed before produce."""
    method = context.method.units
    assert method is not None
    passed = ActivationPass(
        dense, context.settings, context.rotary, layer_pass.prefix_length, layer_pass.ranks
    )
    for rows in layer_pass.batches():
        passed.advance(layer_pass.compressed(rows))
    return score_units(method.score, passed.moments(), dense)


def _mlp_outcome(units: LayerUnits, plan: LayerPlan) -> ModuleOutcome:
    """Return the MLP's outcome, with the spectrum of the scores if neurons are removed."""
    keep = plan.intermediate_size
    if keep == units.mlp.shape[0]:
        return ModuleOutcome(module="mlp")
    spectrum = spectra.score_spectrum("MLP neurons", "score", units.mlp, keep)
    return ModuleOutcome(module="mlp", spectra=(spectrum,))
