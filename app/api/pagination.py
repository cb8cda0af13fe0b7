"""Cursors: opaque to clients, a position in the order of ids to us."""

from __future__ import annotations

import base64
import binascii

from app.domain.errors import FieldProblem, InvalidRequestError
from app.domain.identifiers import JOB, is_id


def encode_cursor(last_id: str) -> str:
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, prefix: str = JOB) -> str | None:
    """The id the cursor stands for; `prefix` says of what.

    Raises:
        InvalidRequestError: if we did not make it.
    """
    if cursor is None:
        return None
    try:
        last_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        last_id = ""
    if not is_id(prefix, last_id):
        problem = FieldProblem(
            pointer="query:after", code="bad_cursor", message="use next_cursor of the last page"
        )
        raise InvalidRequestError("The cursor is not one of ours", fields=(problem,))
    return last_id
