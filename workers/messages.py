"""What parent and child say to each other: one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from intraslice_core.config import (
    UNLIMITED,
    CompressionConfig,
    EvaluationConfig,
    FrozenModel,
    ModelLimits,
)
from intraslice_core.progress import ProgressEvent, Stage


class ChildTelemetry(FrozenModel):
    """How the child logs, and which trace it continues; it does not read the environment."""

    log_level: str = "INFO"
    context: dict[str, str] = Field(default_factory=dict)
    traces_url: str = ""
    traceparent: str | None = None


class SharedPlace(FrozenModel):
    """Where the jobs of one sweep leave for each other what does not depend on the ratio."""

    directory: Path
    max_bytes: int


class CheckpointPlace(FrozenModel):
    """Where the attempts of one job on this machine keep finished layers."""

    directory: Path
    streams_every_seconds: float


class ChildRequest(FrozenModel):
    """Parent to child, once, on stdin."""

    model: str
    checkpoint: Path
    scratch: Path
    compression: CompressionConfig
    evaluation: EvaluationConfig | None
    telemetry: ChildTelemetry = ChildTelemetry()
    limits: ModelLimits = UNLIMITED
    shared: SharedPlace | None = None
    checkpoints: CheckpointPlace | None = None


class ProgressMessage(FrozenModel):
    """One step forward."""

    kind: Literal["progress"] = "progress"
    event: ProgressEvent


class LayerSavedMessage(FrozenModel):
    """A file that another attempt could go on from is whole."""

    kind: Literal["layer_saved"] = "layer_saved"
    name: str


class FinishedMessage(FrozenModel):
    """The checkpoint is complete and was verified."""

    kind: Literal["finished"] = "finished"
    report: dict[str, Any]


class FailedMessage(FrozenModel):
    """The engine gave up, or was told to stop (`code` is `cancelled` then)."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str
    hint: str | None = None
    field: str | None = None
    layer: int | None = None
    module: str | None = None
    stage: Stage | None = None


ChildMessage = ProgressMessage | LayerSavedMessage | FinishedMessage | FailedMessage
_ADAPTER: TypeAdapter[ChildMessage] = TypeAdapter(
    Annotated[ChildMessage, Field(discriminator="kind")]
)


def encode(message: FrozenModel) -> bytes:
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> ChildMessage:
    return _ADAPTER.validate_json(line)
