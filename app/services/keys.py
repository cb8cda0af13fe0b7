"""Management of API keys by administrators, and identification of callers by their key.

An administrator's key manages the keys of its own project. Only the operator, who holds
`INTRASLICE_API_KEY` or the database, creates keys for other projects and revokes any.
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
    """A key to be created; `project_id` None means the caller's project."""

    name: str
    scope: Scope
    project_id: str | None = None
    expires_at: datetime | None = None


def create_key(resources: Resources, principal: Principal, request: KeyRequest) -> IssuedKey:
    """Create a key.

    Raises:
        ScopeMissingError: if it is for another project and the caller is not the operator.
        InvalidRequestError: if it would have expired already.
    """
    if request.expires_at is not None and request.expires_at <= datetime.now(UTC):
        problem = FieldProblem(pointer="/expires_at", code="past", message="lies in the past")
        raise InvalidRequestError("The key would have expired already", fields=(problem,))
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
    """Revoke a key; its row stays, because the audit log names it. Repeating it is harmless."""
    with resources.database.transaction() as transaction:
        _existing(transaction, principal, key_id)
        keys.revoke(transaction, key_id)
        revoked = _existing(transaction, principal, key_id)
    resources.key_cache.forget(key_id)
    return revoked


def recall(resources: Resources, secret: str) -> ApiKey | None:
    """Return the key of a secret if it is cached; does no I/O."""
    return resources.key_cache.get(digest(secret))


def identify(resources: Resources, secret: str) -> ApiKey | None:
    """Return the key of a secret, even a revoked or expired one; None if there is none."""
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
    """Return whether the principal's key is still valid, for long-running requests.

    While the database does not answer, the key counts as valid.
    """
    if principal.key_id is None:
        return True
    try:
        with resources.database.transaction() as transaction:
            key = keys.find(transaction, principal.key_id)
    except DatabaseUnavailableError:
        return True
    return key is not None and key.is_good(datetime.now(UTC))


def project_of(principal: Principal, requested: str | None) -> str:
    """Return the project to manage.

    Raises:
        ScopeMissingError: if it is another's and the caller is not the operator.
    """
    if requested is None or requested == principal.project_id:
        return principal.project_id
    if not principal.is_operator:
        raise ScopeMissingError("Only the operator manages other projects")
    return requested


def _existing(transaction: Transaction, principal: Principal, key_id: str) -> ApiKey:
    key = keys.find(transaction, key_id) if is_id(KEY, key_id) else None
    if key is None or not (principal.is_operator or key.project == principal.project_id):
        raise KeyNotFoundError
    return key
