"""The audit log: attempts to change something, and their outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field
from pydantic.config import JsonDict

from app.domain.resource import Page, Resource

AUDIT = "aud"
_EXAMPLE: JsonDict = {
    "id": "aud_01KAS40M7RZQ5X1V8C3G6TBE2Y",
    "object": "audit_entry",
    "created_at": "2026-03-02T03:00:00Z",
    "project": "search",
    "key": "key_01KAS3Z8Q0V5W9TB6F2D7JXN4M",
    "method": "POST",
    "route": "/v1/jobs/{job_id}/cancel",
    "object_id": "job_01KAS3ZK5E8H2N9PWT4Y7M1QRV",
    "status": 202,
    "request_id": "req_0f4c2b1e9d8a7c6b5a4938271605f4e3",
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A mutating call, without its body: `route` is the template, `object_id` one of our ids."""

    project_id: str
    key_id: str | None
    method: str
    route: str
    object_id: str | None
    status: int
    request_id: str


class AuditEntry(Resource):
    """A call that changed something, or was rejected."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    object: Literal["audit_entry"] = "audit_entry"
    created_at: AwareDatetime
    project: str
    key: str | None = Field(description="Id of the caller's key; null for the operator.")
    method: str
    route: str = Field(description="Template of the path; the path itself is not stored.")
    object_id: str | None
    status: int
    request_id: str


class AuditList(Page[AuditEntry]):
    """One page of the audit log, newest first."""
