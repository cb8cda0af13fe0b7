"""Job ids: `job_` and a ULID, so that sorting by id is sorting by time."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 26
_RANDOM_BITS = 80
_PATTERN = re.compile(r"job_[0-7][0-9A-HJKMNP-TV-Z]{25}")


def new_job_id() -> str:
    """48 bits of milliseconds, 80 of chance."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    digits = (_ALPHABET[(number >> 5 * place) & 31] for place in reversed(range(_LENGTH)))
    return "job_" + "".join(digits)


def is_job_id(text: str) -> bool:
    return _PATTERN.fullmatch(text) is not None
