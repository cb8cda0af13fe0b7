"""Progress events of a run, and cancellation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from intraslice_core.config import FrozenModel
from intraslice_core.errors import CompressionCancelledError


class Stage(StrEnum):
    """Stages of a job, in order."""

    LOAD = "load"
    CALIBRATE = "calibrate"
    ALLOCATE = "allocate"
    COMPRESS = "compress"
    RECOVER = "recover"
    VERIFY = "verify"
    EVALUATE = "evaluate"
    EXPORT = "export"
    PUBLISH = "publish"


Shares = Mapping[Stage, tuple[float, float]]
"""Begin and end of each stage, as fractions of a run."""

_SHARES: Shares = {
    Stage.LOAD: (0.0, 0.02),
    Stage.CALIBRATE: (0.02, 0.06),
    Stage.ALLOCATE: (0.06, 0.30),
    Stage.COMPRESS: (0.30, 0.75),
    Stage.VERIFY: (0.75, 0.80),
    Stage.EVALUATE: (0.80, 0.99),
    Stage.EXPORT: (0.99, 1.0),
}
"""Shares of a run without fine-tuning, measured on SmolLM2-135M."""

_FINETUNING_SHARE = 0.65
"""Approximate fraction of a run that recovery fine-tuning takes.

Measured on SmolLM2-135M with 32 calibration sequences and 204,800 training tokens.
"""


def shares_of(*, recover: bool) -> Shares:
    """Return the stage shares of a run, with or without recovery fine-tuning."""
    if not recover:
        return _SHARES
    begin = _SHARES[Stage.COMPRESS][1] * (1.0 - _FINETUNING_SHARE)

    def rescaled(fraction: float) -> float:
        scaled = fraction * (1.0 - _FINETUNING_SHARE)
        return scaled if scaled <= begin else scaled + _FINETUNING_SHARE

    shares = {stage: (rescaled(low), rescaled(high)) for stage, (low, high) in _SHARES.items()}
    shares[Stage.VERIFY] = (begin + _FINETUNING_SHARE, shares[Stage.VERIFY][1])
    return shares | {Stage.RECOVER: (begin, begin + _FINETUNING_SHARE)}


class LayerDone(FrozenModel):
    """Shape of a finished layer and the relative errors of its compensation."""

    layer: int
    num_attention_heads: int
    num_key_value_heads: int
    qk_head_dim: int
    v_head_dim: int
    intermediate_size: int
    attention_part: float
    """Kept fraction of the dense heads' widths."""
    mlp_part: float
    """Kept fraction of the dense MLP's width."""
    attention_error: float | None = None
    mlp_error: float | None = None
    explained_energy: float | None = None


class ProgressEvent(FrozenModel):
    """Progress of a run; `fraction` of the whole run is in [0, 1], `layer` counts from 0."""

    stage: Stage
    message: str
    fraction: float
    layer: int | None = None
    layers: int | None = None
    eta_seconds: float | None = None
    finished: LayerDone | None = None


ProgressListener = Callable[[ProgressEvent], None]
CancellationCheck = Callable[[], bool]


def ignore_progress(event: ProgressEvent) -> None:
    """Ignore a progress event (default listener)."""


def never_cancelled() -> bool:
    """Return False: the run is never cancelled (default check)."""
    return False


def raise_if_cancelled(should_cancel: CancellationCheck) -> None:
    """Raise if cancellation was requested.

    Raises:
        CompressionCancelledError: if `should_cancel` returns True.
    """
    if should_cancel():
        raise CompressionCancelledError("the compression was cancelled")
