"""Layers with trial cuts, and the cuts of such a layer with their predicted losses."""

from __future__ import annotations

from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.plan import LayerPlan, Module
from intraslice_core.sensitivity.cut_layers import CuttableLayer
from intraslice_core.sensitivity.trial_cuts import TrialCut

TRIAL_CUTS = (0.25, 0.5)
"""Fractions of a module's dimensions that trial cuts remove."""
TRIAL_LAYER_DISTANCE = 5
"""Distance between layers with trial cuts, at least."""
MAX_TRIAL_LAYERS = 7
"""Number of layers with trial cuts, at most: each trial passes all layers after its cut."""


def trial_layers(layers: int) -> tuple[int, ...]:
    """Return the layers with trial cuts, evenly spaced, the first and the last among them."""
    last = layers - 1
    gaps = min(-(-last // TRIAL_LAYER_DISTANCE), MAX_TRIAL_LAYERS - 1)
    return tuple(-(-last * spot // gaps) for spot in range(gaps + 1)) if gaps else (0,)


def layer_trials(layer: CuttableLayer) -> tuple[tuple[TrialCut, LayerWeights], ...]:
    """Return the layer with one module cut by each of `TRIAL_CUTS`, and the predictions.

    Raises:
        NumericalError: if a refit or a selection fails.
    """
    trials = []
    for fraction in TRIAL_CUTS:
        plan, sensitivity = _plan(layer, fraction), layer.sensitivity
        attention = float(
            sensitivity.pair_losses[plan.qk_pairs] + sensitivity.value_losses[plan.v_head_dim]
        )
        mlp = float(sensitivity.width_losses[plan.intermediate_size])
        trials += [
            (
                _trial("attention", fraction, attention),
                layer.cut_attention(layer.weights, plan),
            ),
            (_trial("mlp", fraction, mlp), layer.cut_mlp(layer.weights, plan)),
        ]
    return tuple(trials)


def _plan(layer: CuttableLayer, fraction: float) -> LayerPlan:
    """Return the plan that removes a fraction of all dimensions but the heads."""
    settings = layer.settings

    def remaining(size: float) -> int:
        return max(round((1 - fraction) * size), 1)

    return LayerPlan(
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        qk_pairs=remaining(settings.head_dim / 2),
        v_head_dim=remaining(settings.head_dim),
        intermediate_size=remaining(layer.weights.up.weight.shape[0]),
    )


def _trial(module: Module, fraction: float, predicted: float) -> TrialCut:
    """Return a trial not yet measured; `TrialCuts` fills in layer and loss."""
    return TrialCut(layer=0, module=module, cut=fraction, predicted=predicted, measured=0.0)
