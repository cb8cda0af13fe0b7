"""Ids: a prefix for the kind of object, and a ULID, so that ids sort by time."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 26
_RANDOM_BITS = 80
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
JOB = "job"
SWEEP = "sweep"
WEBHOOK = "whk"
DELIVERY = "msg"
UPLOAD = "upl"
DEPLOYMENT = "dep"


def new_id(prefix: str) -> str:
    """Return `prefix_` and a ULID: 48 bits of milliseconds and 80 random bits."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    digits = (_ALPHABET[(number >> 5 * place) & 31] for place in reversed(range(_LENGTH)))
    return f"{prefix}_{''.join(digits)}"


def is_id(prefix: str, text: str) -> bool:
    """Return whether the text is a well-formed id with this prefix."""
    head, _, ulid = text.partition("_")
    return head == prefix and _ULID.fullmatch(ulid) is not None


def new_job_id() -> str:
    return new_id(JOB)


def is_job_id(text: str) -> bool:
    return is_id(JOB, text)


def looks_like_id(text: str) -> bool:
    """Return whether the text is a well-formed id with any prefix."""
    prefix = text.partition("_")[0]
    return prefix.isascii() and prefix.islower() and is_id(prefix, text)
