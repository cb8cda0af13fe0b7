"""API keys, and their secrets, of which only a digest is stored."""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field
from pydantic.config import JsonDict

from app.domain.principal import Principal, Scope, included
from app.domain.resource import Page, Resource

KEY = "key"
_PREFIX = "isk_"
_RANDOM_BYTES = 32
_SHOWN_CHARACTERS = len(_PREFIX) + 8
_SECRET = re.compile(rf"{_PREFIX}([0-9a-f]{{{2 * _RANDOM_BYTES}}})([0-9a-f]{{8}})")

_ANY_SECRET = re.compile(rf"{_PREFIX}[0-9a-f]+")


_EXAMPLE: JsonDict = {
    "id": "key_01KAS3Z8Q0V5W9TB6F2D7JXN4M",
    "object": "key",
    "name": "nightly pipeline",
    "project": "search",
    "scope": "write",
    "hint": "isk_6f1d0c9a",
    "created_at": "2026-03-01T12:00:00Z",
    "created_by": None,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": "2026-03-02T03:00:00Z",
}


class ApiKey(Resource):
    """A key without its secret; `hint` is how the secret begins."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    object: Literal["key"] = "key"
    name: str
    project: str
    scope: Scope
    hint: str
    created_at: AwareDatetime
    created_by: str | None = Field(
        description="Id of the key that created it; null for the operator."
    )
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None = Field(description="Time of last use, to the minute.")

    def is_good(self, now: datetime) -> bool:
        """Return whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def principal(self, now: datetime) -> Principal:
        """Return the key's holder; without scopes if the key is revoked or expired."""
        scopes = included(self.scope) if self.is_good(now) else frozenset()
        return Principal(project_id=self.project, scopes=scopes, key_id=self.id)


class IssuedKey(ApiKey):
    """A new key; `secret` is shown this once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                _EXAMPLE | {"last_used_at": None, "secret": "isk_6f1d0c9a" + 56 * "0" + "2f0c6b1e"}
            ]
        }
    )

    secret: str


class KeyList(Page[ApiKey]):
    """One page of keys, newest first, the revoked ones too."""


def new_secret() -> str:
    """Return `isk_`, 256 random bits and a checksum that secret scanners can verify."""
    random = secrets.token_hex(_RANDOM_BYTES)
    return f"{_PREFIX}{random}{_checksum(random)}"


def is_secret(text: str) -> bool:
    """Return whether `new_secret` can have made the text; the database is asked for no others."""
    match = _SECRET.fullmatch(text)
    return match is not None and _checksum(match[1]) == match[2]


def digest(secret: str) -> str:
    """Return the SHA-256 by which the database stores and finds a secret.

    Plain SHA-256 is right here: salt and slow hashes protect passwords that people choose, and
    256 random bits cannot be guessed. An index lookup leaks no timing information either,
    because an attacker cannot choose a guess with a digest close to a stored one.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def without_secrets(text: str) -> str:
    """Return the text with secrets cut out, for logs: ids in paths may be keys by mistake."""
    return _ANY_SECRET.sub(f"{_PREFIX}…", text)


def hint(secret: str) -> str:
    return secret[:_SHOWN_CHARACTERS]


def _checksum(random: str) -> str:
    return f"{zlib.crc32(random.encode()):08x}"
