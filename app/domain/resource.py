"""Base models of everything that the API returns, pages of them, and the cursors between pages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from app.domain.errors import FieldProblem, InvalidRequestError
from app.domain.identifiers import JOB, is_id


class ApiModel(BaseModel):
    """A frozen value that the API returns and the client parses.

    Unknown fields are ignored, so that an older client can read the answers of a newer service.
    Validators are built at the first use, because a command uses few of the models.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)


class Resource(ApiModel):
    """An object with an id; ids sort by creation time."""

    id: str


R = TypeVar("R", bound=Resource)


class Page(ApiModel, Generic[R]):
    """Some resources, newest first, and the cursor of the next page."""

    data: tuple[R, ...]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, resources: Sequence[R], limit: int) -> Self:
        """Return a page of `limit` resources from a query for `limit` + 1."""
        has_more = len(resources) > limit
        return cls(
            data=tuple(resources[:limit]),
            has_more=has_more,
            next_cursor=encode_cursor(resources[limit - 1].id) if has_more else None,
        )


def encode_cursor(last_id: str) -> str:
    """Return the cursor of the page that follows `last_id`; opaque to clients."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def decode_name(cursor: str | None) -> str | None:
    """Return the file name in a cursor.

    Raises:
        InvalidRequestError: if `encode_cursor` did not make it from such a name.
    """
    if cursor is None:
        return None
    try:
        name = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError):
        name = ""
    if not name or "/" in name or "\0" in name:
        raise _bad_cursor()
    return name


def decode_cursor(cursor: str | None, prefix: str = JOB) -> str | None:
    """Return the id in a cursor; `prefix` is the one that its ids must have.

    Raises:
        InvalidRequestError: if `encode_cursor` did not make it from such an id.
    """
    if cursor is None:
        return None
    try:
        last_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        last_id = ""
    if not is_id(prefix, last_id):
        raise _bad_cursor()
    return last_id


def _bad_cursor() -> InvalidRequestError:
    problem = FieldProblem(
        pointer="query:after", code="bad_cursor", message="use next_cursor of the previous page"
    )
    return InvalidRequestError("The cursor is invalid", fields=(problem,))
