"""One line of the audit log: who tried to change what, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

AUDIT = "aud"


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


@dataclass(frozen=True, kw_only=True)
class AuditEntry(Attempt):
    """An attempt as it was written down."""

    id: str
    created_at: datetime
