"""API keys on the wire."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from app.api.pagination import encode_cursor
from app.domain.api_key import ApiKey
from app.domain.principal import PROJECT_PATTERN, Scope
from app.services.keys import IssuedKey, KeyPage, KeyRequest

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


class KeyCreate(BaseModel):
    """A key for somebody; without `project` it is of the asker's own project."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "nightly pipeline", "scope": "write"}]},
    )

    name: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]
    scope: Scope = Field(description="Each includes the one before: read, write, admin.")
    project: Annotated[str, StringConstraints(pattern=PROJECT_PATTERN)] | None = None
    expires_at: AwareDatetime | None = None

    def to_domain(self) -> KeyRequest:
        return KeyRequest(
            name=self.name,
            scope=self.scope,
            project_id=self.project,
            expires_at=self.expires_at,
        )


class KeyOut(BaseModel):
    """A key without its secret; `hint` is how the secret begins."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str
    object: Literal["key"] = "key"
    name: str
    project: str
    scope: Scope
    hint: str
    created_at: AwareDatetime
    created_by: str | None = Field(description="The key that made it; null: the operator.")
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None = Field(description="To the minute.")

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls(**_fields(key))


class IssuedKeyOut(KeyOut):
    """A new key; `secret` is shown this once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                _EXAMPLE | {"last_used_at": None, "secret": "isk_6f1d0c9a" + 56 * "0" + "2f0c6b1e"}
            ]
        }
    )

    secret: str

    @classmethod
    def issued(cls, issued: IssuedKey) -> Self:
        return cls(**_fields(issued.key), secret=issued.secret)


class KeyList(BaseModel):
    """One page of keys, newest first, the revoked ones too."""

    data: list[KeyOut]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, page: KeyPage) -> KeyList:
        return cls(
            data=[KeyOut.of(key) for key in page.keys],
            has_more=page.has_more,
            next_cursor=encode_cursor(page.keys[-1].id) if page.has_more else None,
        )


def _fields(key: ApiKey) -> dict[str, object]:
    return vars(key) | {"project": key.project_id}
