"""Request bodies and headers, built from the arguments of the client's methods."""

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
    optional: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the JSON body that creates a job or a sweep.

    Args:
        model: the model to compress.
        compression: settings of the compression.
        evaluation: settings of the evaluation; None skips it.
        labels: labels of the job.
        optional: further fields; those that are None are left out.
    """
    return {
        "model": model.model_dump(mode="json"),
        "compression": compression.model_dump(mode="json"),
        "evaluation": evaluation and evaluation.model_dump(mode="json"),
        "labels": dict(labels or {}),
        **without_none(**optional),
    }


def idempotency_header(key: str | None) -> dict[str, str]:
    """Return the header that makes a repeated create request safe; None generates a key."""
    return {"Idempotency-Key": key or f"client-{uuid.uuid4().hex}"}


def without_none(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
