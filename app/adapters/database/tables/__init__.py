"""The tables, as the migrations leave them (a test compares the two); a file for each noun."""

from app.adapters.database.tables.audit import audit
from app.adapters.database.tables.base import metadata
from app.adapters.database.tables.deployment import deployment, orphans
from app.adapters.database.tables.generations import generations
from app.adapters.database.tables.hub_repositories import hub_repositories
from app.adapters.database.tables.jobs import (
    artifacts,
    events,
    idempotency_keys,
    jobs,
    layer_files,
    outbox,
    turns,
)
from app.adapters.database.tables.keys import api_keys
from app.adapters.database.tables.log_lines import log_lines
from app.adapters.database.tables.past_runs import past_runs, rates
from app.adapters.database.tables.registry_hand_offs import hand_offs
from app.adapters.database.tables.schema_window import schema_window
from app.adapters.database.tables.sweeps import sweeps
from app.adapters.database.tables.uploads import uploads
from app.adapters.database.tables.webhooks import webhook_deliveries, webhooks
from app.adapters.database.tables.workers import workers

__all__ = [
    "api_keys",
    "artifacts",
    "audit",
    "deployment",
    "events",
    "generations",
    "hand_offs",
    "hub_repositories",
    "idempotency_keys",
    "jobs",
    "layer_files",
    "log_lines",
    "metadata",
    "orphans",
    "outbox",
    "past_runs",
    "rates",
    "schema_window",
    "sweeps",
    "turns",
    "uploads",
    "webhook_deliveries",
    "webhooks",
    "workers",
]
