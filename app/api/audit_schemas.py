"""The audit log on the wire."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from app.api.pagination import encode_cursor
from app.domain.audit import AuditEntry
from app.services.audit import AuditPage

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


class AuditEntryOut(BaseModel):
    """One call that changed something, or was refused it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    created_at: AwareDatetime
    project: str
    key: str | None = Field(description="null: the operator")
    method: str
    route: str = Field(description="The path's template; the path itself is not kept.")
    object_id: str | None
    status: int
    request_id: str

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        return cls(**vars(entry) | {"project": entry.project_id, "key": entry.key_id})


class AuditList(BaseModel):
    """One page of the log, newest first."""

    data: list[AuditEntryOut]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, page: AuditPage) -> AuditList:
        return cls(
            data=[AuditEntryOut.of(entry) for entry in page.entries],
            has_more=page.has_more,
            next_cursor=encode_cursor(page.entries[-1].id) if page.has_more else None,
        )
