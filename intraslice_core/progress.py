"""Typed progress of a run, and the question "shall I stop?"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from intraslice_core.config import FrozenModel
from intraslice_core.errors import CompressionCancelledError


class Stage(StrEnum):
    """What a job is doing, in order."""

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
"""Where each stage begins and ends as a fraction of a run."""

_SHARES: Shares = {
    Stage.LOAD: (0.0, 0.02),
    Stage.CALIBRATE: (0.02, 0.06),
    Stage.ALLOCATE: (0.06, 0.30),
    Stage.COMPRESS: (0.30, 0.75),
    Stage.VERIFY: (0.75, 0.80),
    Stage.EVALUATE: (0.80, 0.99),
    Stage.EXPORT: (0.99, 1.0),
}
"""Measured on SmolLM2-135M."""

_RECOVERED = 0.65
"""Part of a run that its training takes; on SmolLM2-135M with 32 calibration sequences and 204,800
tokens it was about that."""


def shares_of(*, recover: bool) -> Shares:
    """Of a run that trains what it has compressed, or does not."""
    if not recover:
        return _SHARES
    begin = _SHARES[Stage.COMPRESS][1] * (1.0 - _RECOVERED)

    def moved(place: float) -> float:
        squeezed = place * (1.0 - _RECOVERED)
        return squeezed if squeezed <= begin else squeezed + _RECOVERED

    shares = {stage: (moved(low), moved(high)) for stage, (low, high) in _SHARES.items()}
    shares[Stage.VERIFY] = (begin + _RECOVERED, shares[Stage.VERIFY][1])
    return shares | {Stage.RECOVER: (begin, begin + _RECOVERED)}


class LayerDone(FrozenModel):
    """A layer that is finished: what it keeps, and what its refits have left over."""

    layer: int
    num_attention_heads: int
    num_key_value_heads: int
    qk_head_dim: int
    v_head_dim: int
    intermediate_size: int
    attention_part: float
    """Of the dense heads' widths, what is kept."""
    mlp_part: float
    """Of the dense MLP's width, what is kept."""
    attention_error: float | None = None
    mlp_error: float | None = None
    explained_energy: float | None = None


class ProgressEvent(FrozenModel):
    """One step forward. `fraction` is of the whole run, in [0, 1]; `layer` counts from 0."""

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
    """Listen to nothing."""


def never_cancelled() -> bool:
    """Run to the end."""
    return False


def raise_if_cancelled(should_cancel: CancellationCheck) -> None:
    """Stop here when asked.

    Raises:
        CompressionCancelledError: if `should_cancel` says so.
    """
    if should_cancel():
        raise CompressionCancelledError("the compression was cancelled")
