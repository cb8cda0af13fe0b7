"""/v1/audit: the audit log."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import Admin, CursorQuery, LimitQuery, ProjectQuery, ResourcesDep
from app.api.documentation import problems
from app.domain.audit import AUDIT, AuditList
from app.domain.resource import decode_cursor
from app.services import audit

router = APIRouter(prefix="/v1/audit", tags=["audit"], responses=problems(401, 403, 422, 503))


@router.get("")
def list_audit(
    resources: ResourcesDep,
    principal: Admin,
    limit: LimitQuery = 20,
    after: CursorQuery = None,
    project: ProjectQuery = None,
) -> AuditList:
    """List calls that changed something or were rejected, newest first."""
    before = decode_cursor(after, AUDIT)
    return audit.list_audit(resources, principal, project_id=project, limit=limit, before=before)
