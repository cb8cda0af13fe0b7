"""/v1/keys: API keys."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.api.dependencies import Admin, CursorQuery, LimitQuery, ProjectQuery, ResourcesDep
from app.api.documentation import problems
from app.api.key_schemas import KeyCreate
from app.domain.api_key import KEY, ApiKey, IssuedKey, KeyList
from app.domain.resource import decode_cursor
from app.services import keys

router = APIRouter(prefix="/v1/keys", tags=["keys"], responses=problems(401, 403, 422, 503))


@router.post("", status_code=201)
def create_key(
    body: KeyCreate, resources: ResourcesDep, principal: Admin, response: Response
) -> IssuedKey:
    """Create a key; only this response contains its secret."""
    issued = keys.create_key(resources, principal, body.to_domain())
    response.headers["Location"] = f"{router.prefix}/{issued.id}"
    response.headers["Cache-Control"] = "no-store"
    return issued


@router.get("")
def list_keys(
    resources: ResourcesDep,
    principal: Admin,
    limit: LimitQuery = 20,
    after: CursorQuery = None,
    project: ProjectQuery = None,
) -> KeyList:
    """List keys, newest first, without their secrets."""
    before = decode_cursor(after, KEY)
    return keys.list_keys(resources, principal, project_id=project, limit=limit, before=before)


@router.get("/{key_id}", responses=problems(404))
def get_key(key_id: str, resources: ResourcesDep, principal: Admin) -> ApiKey:
    """Return a key."""
    return keys.get_key(resources, principal, key_id)


@router.delete("/{key_id}", status_code=204, responses=problems(404))
def revoke_key(key_id: str, resources: ResourcesDep, principal: Admin) -> None:
    """Revoke a key; repeating it is harmless."""
    keys.revoke_key(resources, principal, key_id)
