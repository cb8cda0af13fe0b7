"""The service's errors, one tree. HTTP statuses are in `app/api/problems.py` only.

ServiceError
├── NotFoundError
│   ├── JobNotFoundError
│   ├── ReportNotFoundError
│   ├── ArtifactNotFoundError
│   ├── SweepNotFoundError
│   ├── KeyNotFoundError
│   ├── UploadNotFoundError
│   ├── WebhookNotFoundError
│   ├── DeliveryNotFoundError
│   └── GenerationNotFoundError
├── ArtifactsExpiredError        the artifacts have expired
├── IllegalTransitionError       the job's state does not allow it
│   ├── UploadNotOpenError
│   ├── UploadIncompleteError
│   ├── UploadNotReadyError
│   ├── UploadInUseError
│   ├── WebhookDisabledError
│   └── DeliveryPendingError
├── InvalidRequestError          well-formed, but not allowed; lists the fields
│   ├── DestinationRejectedError  the URL is not allowed for webhooks
│   ├── PartRejectedError         a part of an upload has another length
│   └── IdempotencyKeyReusedError
├── ScopeMissingError            the key lacks the scope
├── PlaygroundDisabledError       the playground is off
├── TooManyGenerationsError       too many prompts of a key have not ended
├── LinkRejectedError             a download link is forged or has expired
├── NotAcceptableError           no available media type is acceptable
├── PreconditionFailedError      the resource differs from the client's copy (`If-Match`)
├── ResourceBusyError            another transaction holds a lock
├── LeaseLostError               another worker has the lease, or none has
├── PublicationError             the store holds other bytes than were written
├── HandOffError                 a registry or hub rejected a checkpoint
│   └── RepositoryTakenError     the repository has files of others, or is another project's
├── UploadDamagedError           the store holds other bytes than were announced
├── DiskFullError                the disk of this machine is full
├── MigrationError               the requested change of the schema is impossible or drops data
└── UnavailableError             a required server does not answer
    ├── DatabaseUnavailableError
    │   └── SchemaError          the schema does not fit this version
    ├── BrokerUnavailableError
    ├── StoreUnavailableError
    └── StoreNotOwnedError        the store is another deployment's; nothing is deleted
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class ServiceError(Exception):
    """A request that the service rejects or cannot serve; the docstring is the default message."""

    code: ClassVar[str] = "service_error"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or self._summary()
        super().__init__(self.message)

    @property
    def public_message(self) -> str:
        """Message for callers of the API."""
        return self.message

    def _summary(self) -> str:
        return (type(self).__doc__ or "").strip().rstrip(".")


class NotFoundError(ServiceError):
    """Not found."""

    code = "not_found"


class JobNotFoundError(NotFoundError):
    """There is no such job."""

    code = "job_not_found"


class ReportNotFoundError(NotFoundError):
    """A job has a report once it has succeeded."""

    code = "report_not_found"


class ArtifactNotFoundError(NotFoundError):
    """There is no such artifact."""

    code = "artifact_not_found"


class ArtifactsExpiredError(ServiceError):
    """The job's artifacts have expired and were removed."""

    code = "artifacts_expired"


class SweepNotFoundError(NotFoundError):
    """There is no such sweep."""

    code = "sweep_not_found"


class KeyNotFoundError(NotFoundError):
    """There is no such key."""

    code = "key_not_found"


class UploadNotFoundError(NotFoundError):
    """There is no such upload."""

    code = "upload_not_found"


class WebhookNotFoundError(NotFoundError):
    """There is no such webhook."""

    code = "webhook_not_found"


class DeliveryNotFoundError(NotFoundError):
    """The webhook has no such delivery."""

    code = "delivery_not_found"


class GenerationNotFoundError(NotFoundError):
    """The job has no such generation."""

    code = "generation_not_found"


class IllegalTransitionError(ServiceError):
    """The job's state does not allow this."""

    code = "illegal_state"


class UploadNotOpenError(IllegalTransitionError):
    """The upload does not accept parts any more."""

    code = "upload_not_open"


class UploadIncompleteError(IllegalTransitionError):
    """Parts of the upload are missing."""

    code = "upload_incomplete"


class UploadNotReadyError(IllegalTransitionError):
    """The upload has not been verified yet."""

    code = "upload_not_ready"


class UploadInUseError(IllegalTransitionError):
    """A job that has not ended names the upload."""

    code = "upload_in_use"


class WebhookDisabledError(IllegalTransitionError):
    """The webhook is disabled; enable it first."""

    code = "webhook_disabled"


class DeliveryPendingError(IllegalTransitionError):
    """The delivery is still pending."""

    code = "delivery_pending"


@dataclass(frozen=True, kw_only=True)
class FieldProblem:
    """A problem with one field of a request; `pointer` is a JSON pointer."""

    pointer: str
    code: str
    message: str


class InvalidRequestError(ServiceError):
    """The request cannot be accepted."""

    code = "invalid_request"

    def __init__(
        self, message: str | None = None, *, fields: tuple[FieldProblem, ...] = ()
    ) -> None:
        super().__init__(message)
        self.fields = fields


class DestinationRejectedError(InvalidRequestError):
    """The URL is not allowed for webhooks."""

    code = "url_refused"

    def __init__(self, reason: str, message: str) -> None:
        problem = FieldProblem(pointer="/url", code=reason, message=message)
        super().__init__(message, fields=(problem,))


class PartRejectedError(InvalidRequestError):
    """The part does not have its announced length."""

    code = "part_refused"


class IdempotencyKeyReusedError(InvalidRequestError):
    """This Idempotency-Key was used with another request."""

    code = "idempotency_key_reused"


class ScopeMissingError(ServiceError):
    """The key does not allow this."""

    code = "scope_missing"


class PlaygroundDisabledError(ServiceError):
    """The playground is off in this deployment; INTRASLICE_PLAYGROUND=true switches it on."""

    code = "playground_disabled"


class TooManyGenerationsError(ServiceError):
    """Too many generations of this key have not ended."""

    code = "too_many_generations"


class LinkRejectedError(ServiceError):
    """The link is not valid."""

    code = "invalid_link"


class NotAcceptableError(ServiceError):
    """No available media type is acceptable."""

    code = "not_acceptable"


class PreconditionFailedError(ServiceError):
    """The resource has changed since the client read it; read it again."""

    code = "precondition_failed"


class ResourceBusyError(ServiceError):
    """The resource is locked; retry later."""

    code = "busy"


class LeaseLostError(ServiceError):
    """The worker has lost the lease of the job."""

    code = "lease_lost"


class PublicationError(ServiceError):
    """The artifact store holds other bytes than were written."""

    code = "publication_failed"


class HandOffError(ServiceError):
    """The checkpoint could not be handed off."""

    code = "hand_off_failed"


class RepositoryTakenError(HandOffError):
    """The Hub repository contains files that are not a compression result."""

    code = "repository_taken"


class UploadDamagedError(ServiceError):
    """The upload differs from its announcement."""

    code = "upload_damaged"


class DiskFullError(ServiceError):
    """The disk of this machine is full."""

    code = "insufficient_disk"


class MigrationError(ServiceError):
    """The requested change of the schema is not possible."""

    code = "migration_rejected"


class UnavailableError(ServiceError):
    """A server that the service needs does not answer."""

    code = "unavailable"

    def __init__(self, message: str | None = None, *, rejected: bool = False) -> None:
        super().__init__(message)
        self.rejected = rejected
        """True if the server answered and rejected the settings, so that waiting does not help."""


class DatabaseUnavailableError(UnavailableError):
    """The database does not answer."""

    code = "database_unavailable"

    @property
    def public_message(self) -> str:
        """The summary: the server's address is for operators, in logs and `/readyz`."""
        return self._summary()


class SchemaError(DatabaseUnavailableError):
    """The database's schema does not fit this version."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, rejected=True)


class BrokerUnavailableError(UnavailableError):
    """The queue does not answer."""

    code = "broker_unavailable"

    @property
    def public_message(self) -> str:
        """The summary: the server's address is for operators, in logs and `/readyz`."""
        return self._summary()


class StoreUnavailableError(UnavailableError):
    """The artifact store does not answer."""

    code = "store_unavailable"


class StoreNotOwnedError(UnavailableError):
    """The artifact store is not provably this deployment's; nothing is deleted."""

    code = "store_not_owned"


TRANSIENT_ERRORS = (DatabaseUnavailableError, ResourceBusyError)
"""Errors of a write that can succeed later: the database is away, or a lock is held for long."""
OUTAGE_ERRORS = (DatabaseUnavailableError, BrokerUnavailableError, StoreUnavailableError)
"""Errors that the adapters log, at most once a minute; their callers log nothing."""
