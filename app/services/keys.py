"""What administrators do with API keys, and what a key tells about its holder.

An administrator's key rules over the keys of its own project. The operator alone, who holds
`INTRASLICE_API_KEY` or the database, makes keys for other projects and revokes any.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from app.adapters.database import keys
from app.adapters.database.engine import Transaction
from app.domain.api_key import (
    KEY,
    ApiKey,
    IssuedKey,
    KeyList,
    digest,
    hint,
    is_secret,
    new_secret,
)
from app.domain.errors import (
    DatabaseUnavailableError,
    FieldProblem,
    InvalidRequestError,
    KeyNotFoundError,
    ScopeMissingError,
)
from app.domain.identifiers import is_id, new_id
from app.domain.principal import Principal, Scope
from app.services.resources import Resources


@dataclass(frozen=True, kw_only=True)
class KeyRequest:
    """What somebody asks for; `project_id` None is the asker's own."""

    name: str
    scope: Scope
    project_id: str | None = None
    expires_at: datetime | None = None


def create_key(resources: Resources, principal: Principal, request: KeyRequest) -> IssuedKey:
    """Make a key.

    Raises:
        ScopeMissingError: if it is for another project and the asker is not the operator.
        InvalidRequestError: if it would have expired already.
    """
    if request.expires_at is not None and request.expires_at <= datetime.now(UTC):
        problem = FieldProblem(pointer="/expires_at", code="past", message="lies in the past")
        raise InvalidRequestError("The key would never open anything", fields=(problem,))
    secret = new_secret()
    new = keys.NewKey(
        id=new_id(KEY),
        project_id=project_of(principal, request.project_id),
        name=request.name,
        scope=request.scope,
        secret_digest=digest(secret),
        hint=hint(secret),
        created_by=principal.key_id,
        expires_at=request.expires_at,
    )
    with resources.database.transaction() as transaction:
        key = keys.insert_key(transaction, new)
    return IssuedKey(**dict(key), secret=secret)


def list_keys(
    resources: Resources,
    principal: Principal,
    *,
    project_id: str | None,
    limit: int,
    before: str | None,
) -> KeyList:
    chosen = project_of(principal, project_id)
    with resources.database.transaction() as transaction:
        page = keys.newest(transaction, chosen, limit=limit + 1, before=before)
    return KeyList.of(page, limit)


def get_key(resources: Resources, principal: Principal, key_id: str) -> ApiKey:
    with resources.database.transaction() as transaction:
        return _existing(transaction, principal, key_id)


def revoke_key(resources: Resources, principal: Principal, key_id: str) -> ApiKey:
    """End a key for good; its row stays, because the audit log names it. Twice is fine."""
    with resources.database.transaction() as transaction:
        _existing(transaction, principal, key_id)
        keys.revoke(transaction, key_id)
        revoked = _existing(transaction, principal, key_id)
    resources.key_cache.forget(key_id)
    return revoked


def recall(resources: Resources, secret: str) -> ApiKey | None:
    """Whose secret this is, if it was seen a moment ago; waits for nobody."""
    return resources.key_cache.get(digest(secret))


def identify(resources: Resources, secret: str) -> ApiKey | None:
    """Whose secret this is; a revoked or expired key is found too. None if it is nobody's."""
    if not is_secret(secret):
        return None
    secret_digest = digest(secret)
    with resources.database.transaction() as transaction:
        key = keys.find_by_digest(transaction, secret_digest)
        if key is not None and key.is_good(datetime.now(UTC)):
            keys.note_use(transaction, key.id)
    if key is not None:
        resources.key_cache.put(secret_digest, key)
    return key


def is_still_good(resources: Resources, principal: Principal) -> bool:
    """Whether whoever was let in a while ago would be let in now.

    A database that does not answer sends nobody away.
    """
    if principal.key_id is None:
        return True
    try:
        with resources.database.transaction() as transaction:
            key = keys.find(transaction, principal.key_id)
    except DatabaseUnavailableError:
        return True
    return key is not None and key.is_good(datetime.now(UTC))


def project_of(principal: Principal, asked_for: str | None) -> str:
    """The project to administrate.

    Raises:
        ScopeMissingError: if it is another's and the asker is not the operator.
    """
    if asked_for is None or asked_for == principal.project_id:
        return principal.project_id
    if not principal.is_operator:
        raise ScopeMissingError("Only the operator administrates other projects")
    return asked_for


def _existing(transaction: Transaction, principal: Principal, key_id: str) -> ApiKey:
    key = keys.find(transaction, key_id) if is_id(KEY, key_id) else None
    if key is None or not (principal.is_operator or key.project == principal.project_id):
        raise KeyNotFoundError
    return key
