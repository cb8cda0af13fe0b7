"""Configuration and form of a compressed checkpoint, from the work and its finished layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from intraslice_core.export.adaptive import AdaptiveForm
from intraslice_core.export.form import CheckpointForm
from intraslice_core.export.stock import StockForm
from intraslice_core.families.canonical import with_layers
from intraslice_core.layer_loop import CompressionWork
from intraslice_core.modeling import IntraSliceConfig, intraslice_config
from intraslice_core.plan import ModelPlan
from intraslice_core.resume_state import FinishedLayer


def sliced_config(
    work: CompressionWork, plan: ModelPlan, layers: Sequence[FinishedLayer]
) -> IntraSliceConfig:
    """Return the configuration of the compressed model in the IntraSlice architecture."""
    return intraslice_config(
        with_layers(work.result_settings, plan.remaining),
        plan.result_layers,
        [layers[layer].kept_pairs.tolist() for layer in plan.remaining],
        [
            {name: index.tolist() for name, index in layers[layer].residual_parts.items()}
            for layer in plan.remaining
        ],
    )


def result_form(
    work: CompressionWork, plan: ModelPlan, kept_pairs: Tensor
) -> CheckpointForm | None:
    """Return how the model is written for another architecture; None for the IntraSlice one.

    Args:
        work: the compression.
        plan: shapes of all layers.
        kept_pairs: rotary pairs of one layer, (num_key_value_heads, qk_pairs).
    """
    if work.config.target == "adaptive":
        return AdaptiveForm(
            canonical=with_layers(work.canonical, plan.remaining),
            plan=ModelPlan(layers=plan.result_layers),
        )
    if work.config.target == "stock":
        return StockForm(
            family=work.reader.family,
            config=work.reader.config,
            canonical=with_layers(work.canonical, plan.remaining),
            layers=plan.remaining,
            shape=plan.result_layers[0],
            pairs=kept_pairs[0],
        )
    return None
