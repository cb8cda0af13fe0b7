"""The right to work on a job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One worker's claim; `token` rises with every claim, so that an old one can be told."""

    job_id: str
    owner: str
    token: int
