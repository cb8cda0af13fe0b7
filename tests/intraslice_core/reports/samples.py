"""Hand-made reports on models whose layers differ."""

from __future__ import annotations

from intraslice_core.allocation.curves import LayerLosses, ScoredPlan
from intraslice_core.config import CompressionConfig, RecoveryConfig
from intraslice_core.plan import (
    LayerPlan,
    ModelGeometry,
    ModelPlan,
    ResidualParts,
    ResidualWidths,
)
from intraslice_core.reports.schema import (
    AllocationReport,
    CompressionReport,
    HeldOutPerplexity,
    LossPoint,
    RecoveryReport,
)

GEOMETRY = ModelGeometry(
    num_hidden_layers=4,
    hidden_size=64,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=100,
    tie_word_embeddings=True,
)


def layer(heads: int, groups: int, pairs: int, value: int, width: int) -> LayerPlan:
    return LayerPlan(
        num_attention_heads=heads,
        num_key_value_heads=groups,
        qk_pairs=pairs,
        v_head_dim=value,
        intermediate_size=width,
    )


PLAN = ModelPlan(
    layers=(
        layer(4, 2, 8, 16, 256),
        layer(4, 2, 6, 12, 128),
        layer(4, 2, 6, 12, 128),
        layer(0, 0, 0, 0, 192),
    )
)
SLICED_LAYER = GEOMETRY.dense_layer().model_copy(
    update={"residual": ResidualWidths(attention=40, mlp=48, output=64)}
)
LAYER_OF_PARTS = GEOMETRY.dense_layer().model_copy(
    update={
        "residual_parts": ResidualParts(
            attention_reads=10, attention_writes=20, mlp_reads=30, mlp_writes=64
        )
    }
)
PRICED = ScoredPlan(
    plan=PLAN,
    layer_losses=(
        LayerLosses(attention=0.0, mlp=0.0),
        LayerLosses(attention=0.25, mlp=0.5),
        LayerLosses(attention=0.25, mlp=0.5),
        LayerLosses(attention=1.5, mlp=0.0),
    ),
)


RECOVERY = RecoveryReport(
    config=RecoveryConfig(loss="distill", max_tokens=4096),
    tokens=4096,
    steps=8,
    seconds=12.0,
    stopped_by="tokens",
    trained_parameters=1234,
    losses=(LossPoint(tokens=2048, loss=0.75), LossPoint(tokens=4096, loss=0.5)),
    held_out=HeldOutPerplexity(tokens=496, dense=10.0, before=40.0, after=20.0),
)


def report(
    allocation: AllocationReport | None = None, *, model: str = "hub:org/A<b>&c"
) -> CompressionReport:
    """Return the report of an invented run."""
    before, after = GEOMETRY.dense_plan().parameters(GEOMETRY), PLAN.parameters(GEOMETRY)
    return CompressionReport(
        engine_version="0",
        model=model,
        method="intraslice_plus",
        config=CompressionConfig(),
        geometry=GEOMETRY,
        plan=PLAN,
        params_before=before,
        params_after=after,
        compressible_before=before,
        compressible_after=after,
        bytes_before=2 * before,
        bytes_after=2 * after,
        layers=(),
        calibration_hash="",
        calibration_tokens=0,
        seconds=1.0,
        allocation=allocation,
    )


def residual_report(layer: LayerPlan) -> CompressionReport:
    """Return the report of a run whose layers all have one shape."""
    return report().model_copy(update={"plan": ModelPlan(layers=(layer,) * 4)})
