"""Cursors: opaque to clients, a position in the order of ids to us."""

from __future__ import annotations

import base64
import binascii

from app.domain.errors import FieldProblem, InvalidRequestError
from app.domain.identifiers import is_job_id


def encode_cursor(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str | None:
    """The id the cursor stands for.

    Raises:
        InvalidRequestError: if we did not make it.
    """
    if cursor is None:
        return None
    try:
        job_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        job_id = ""
    if not is_job_id(job_id):
        problem = FieldProblem(
            pointer="query:after", code="bad_cursor", message="use next_cursor of the last page"
        )
        raise InvalidRequestError("The cursor is not one of ours", fields=(problem,))
    return job_id
