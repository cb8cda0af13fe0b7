"""Messages between a worker and its child process: one JSON object per line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from app.domain.generation import Answer, PlaygroundModel
from intraslice_core.config import (
    UNLIMITED,
    CompressionConfig,
    EvaluationConfig,
    FrozenModel,
    ModelLimits,
)
from intraslice_core.progress import ProgressEvent, Stage


class ChildTelemetry(FrozenModel):
    """Log and trace settings of the child, which does not read the environment."""

    log_level: str = "INFO"
    context: dict[str, str] = Field(default_factory=dict)
    traces_url: str = ""
    traceparent: str | None = None


class StatisticsCacheSettings(FrozenModel):
    """Directory in which a sweep's jobs share statistics that do not depend on the ratio."""

    directory: Path
    max_bytes: int


class ResumeStateSettings(FrozenModel):
    """Directory in which a job's attempts on this machine keep finished layers."""

    directory: Path
    hidden_states_every_seconds: float


class ChildInput(FrozenModel):
    """Settings of a child process itself, common to all kinds of work."""

    telemetry: ChildTelemetry = ChildTelemetry()
    visible_devices: str | None = None
    """GPUs that the process sees (CUDA_VISIBLE_DEVICES); None leaves the worker's."""


class ChildRequest(ChildInput):
    """The one message from worker to child, sent on stdin."""

    model: str
    checkpoint: Path
    scratch: Path
    compression: CompressionConfig
    evaluation: EvaluationConfig | None
    limits: ModelLimits = UNLIMITED
    statistics_cache: StatisticsCacheSettings | None = None
    resume_state: ResumeStateSettings | None = None
    speeds: Path | None = None
    """File with the speeds of earlier jobs on this machine."""


class PromptedModel(FrozenModel):
    """A model to ask, and where it is."""

    model: PlaygroundModel
    place: str
    """Reference of the dense model, or directory of the compressed one."""


class GenerationInput(ChildInput):
    """The one message to the process of a generation, sent on stdin."""

    # The prompt may be private, and errors are logged.
    model_config = ConfigDict(hide_input_in_errors=True)

    prompt: str
    max_new_tokens: int
    temperature: float | None
    seed: int
    models: tuple[PromptedModel, ...]
    scratch: Path
    dtype: str
    device: str
    limits: ModelLimits = UNLIMITED


class ProgressMessage(FrozenModel):
    """Progress of the engine."""

    kind: Literal["progress"] = "progress"
    event: ProgressEvent


class LayerSavedMessage(FrozenModel):
    """A complete file from which another attempt can resume."""

    kind: Literal["layer_saved"] = "layer_saved"
    name: str


class AnswerMessage(FrozenModel):
    """Continuation of the prompt by one model."""

    kind: Literal["answer"] = "answer"
    answer: Answer


class FinishedMessage(FrozenModel):
    """Success: the checkpoint is complete and verified."""

    kind: Literal["finished"] = "finished"
    report: dict[str, Any]


class FailedMessage(FrozenModel):
    """Failure of the engine, or a requested stop (`code` is `cancelled`)."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str
    hint: str | None = None
    field: str | None = None
    layer: int | None = None
    module: str | None = None
    stage: Stage | None = None


ChildMessage = ProgressMessage | LayerSavedMessage | AnswerMessage | FinishedMessage | FailedMessage
_ADAPTER: TypeAdapter[ChildMessage] = TypeAdapter(
    Annotated[ChildMessage, Field(discriminator="kind")]
)


def encode(message: FrozenModel) -> bytes:
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> ChildMessage:
    return _ADAPTER.validate_json(line)
