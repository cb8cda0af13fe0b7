"""API keys: what is kept of them, and the secret that is not."""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass
from datetime import datetime

from app.domain.principal import Principal, Scope, included

KEY = "key"
_PREFIX = "isk_"
_RANDOM_BYTES = 32
_SHOWN_CHARACTERS = len(_PREFIX) + 8
_SECRET = re.compile(rf"{_PREFIX}([0-9a-f]{{{2 * _RANDOM_BYTES}}})([0-9a-f]{{8}})")

_ANY_SECRET = re.compile(rf"{_PREFIX}[0-9a-f]+")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key without its secret; `hint` is the secret's beginning, to tell keys apart by eye."""

    id: str
    project_id: str
    name: str
    scope: Scope
    hint: str
    created_at: datetime
    created_by: str | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_good(self, now: datetime) -> bool:
        """Whether it opens anything."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def principal(self, now: datetime) -> Principal:
        """Who holds it; a dead key is still somebody's, but allows nothing."""
        scopes = included(self.scope) if self.is_good(now) else frozenset()
        return Principal(project_id=self.project_id, scopes=scopes, key_id=self.id)


def new_secret() -> str:
    """`isk_`, 256 bits of chance, and a checksum: scanners recognise it, typing errors show."""
    chance = secrets.token_hex(_RANDOM_BYTES)
    return f"{_PREFIX}{chance}{_checksum(chance)}"


def is_secret(text: str) -> bool:
    """Whether `new_secret` may have made the text; spares the database what it cannot know."""
    match = _SECRET.fullmatch(text)
    return match is not None and _checksum(match[1]) == match[2]


def digest(secret: str) -> str:
    """What the database keeps instead of the secret, and finds it by.

    Plain SHA-256 is right here: salt and slowness protect what people think up, and nobody
    guesses 256 random bits. Comparing digests in an index tells an attacker nothing either,
    because nobody can steer the digest of a guess towards a stored one.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def without_secrets(text: str) -> str:
    """For logs: somebody may have pasted a key where an id belongs."""
    return _ANY_SECRET.sub(f"{_PREFIX}…", text)


def hint(secret: str) -> str:
    return secret[:_SHOWN_CHARACTERS]


def _checksum(chance: str) -> str:
    return f"{zlib.crc32(chance.encode()):08x}"
