"""The tables, as the migrations leave them (a test compares the two); a file for each noun."""

from app.adapters.database.tables.base import metadata
from app.adapters.database.tables.jobs import (
    artifacts,
    events,
    idempotency_keys,
    jobs,
    outbox,
    turns,
)
from app.adapters.database.tables.sweeps import sweeps

__all__ = [
    "artifacts",
    "events",
    "idempotency_keys",
    "jobs",
    "metadata",
    "outbox",
    "sweeps",
    "turns",
]
