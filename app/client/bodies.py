"""Bodies of requests, from what callers give."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from app.domain.model_source import ModelSource
from intraslice_core.config import CompressionConfig, CompressionSettings, EvaluationConfig


def job_body(
    model: ModelSource,
    compression: CompressionConfig | CompressionSettings,
    evaluation: EvaluationConfig | None,
    labels: Mapping[str, str] | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Of a job or a sweep; `more` are fields that are left out where they are None."""
    return {
        "model": model.model_dump(mode="json"),
        "compression": compression.model_dump(mode="json"),
        "evaluation": evaluation and evaluation.model_dump(mode="json"),
        "labels": dict(labels or {}),
        **{name: value for name, value in more.items() if value is not None},
    }


def once(idempotency_key: str | None) -> dict[str, str]:
    """The header by which a request that is sent twice is done once."""
    return {"Idempotency-Key": idempotency_key or f"client-{uuid.uuid4().hex}"}


def present(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
