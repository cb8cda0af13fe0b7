"""Every metric's name, labels and buckets. Who counts imports the metric; nobody names it again.

Each process has its own; Prometheus adds them up. What the database knows better than any process
(how many jobs wait) is asked when somebody looks: `app/services/monitoring.py`.
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram, disable_created_metrics

# A second series for each counter, to tell when it began; nobody here asks that.
disable_created_metrics()  # type: ignore[no-untyped-call]

_MINUTE, _HOUR = 60.0, 3600.0
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG_BUCKETS = (
    *(1.0, 2.0, 5.0, 10.0, 30.0),
    *(_MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE),
    *(_HOUR, 2 * _HOUR, 4 * _HOUR, 8 * _HOUR, 16 * _HOUR, 24 * _HOUR),
)
"""From a tiny model to a day's work."""

REQUEST_SECONDS = Histogram(
    "intraslice_http_request_seconds",
    "HTTP requests until their answer began; a stream may last for hours after that.",
    ["method", "route", "status"],
    buckets=_REQUEST_BUCKETS,
)
QUEUE_WAIT_SECONDS = Histogram(
    "intraslice_job_queue_wait_seconds",
    "From a job's creation to its first claim.",
    buckets=_LONG_BUCKETS,
)
JOB_SECONDS = Histogram(
    "intraslice_job_seconds",
    "From a job's first claim to its end, by the state it ended in.",
    ["state"],
    buckets=_LONG_BUCKETS,
)
STAGE_SECONDS = Histogram(
    "intraslice_job_stage_seconds",
    "What each stage of an attempt took.",
    ["stage"],
    buckets=_LONG_BUCKETS,
)
JOBS_CLAIMED = Counter("intraslice_jobs_claimed", "Attempts begun.")
JOBS_REAPED = Counter(
    "intraslice_jobs_reaped", "Jobs taken from silent workers, by what became of them.", ["state"]
)
LEASES_LOST = Counter("intraslice_leases_lost", "Attempts that ended because the lease was gone.")
CHILD_DEATHS = Counter(
    "intraslice_child_deaths", "Engine processes that ended without a word, by kind.", ["kind"]
)
STORE_ERRORS = Counter("intraslice_store_errors", "Calls the artifact store did not answer well.")
JOBS_EXPIRED = Counter("intraslice_jobs_expired", "Jobs whose artifacts were removed for age.")
ORPHANS_REMOVED = Counter(
    "intraslice_orphans_removed", "Objects removed from the store because no job owns them."
)
HAND_OFF_TRIES = Counter(
    "intraslice_hand_off_tries",
    "Tries to hand a checkpoint to a registry or a hub, by what came of it.",
    ["target", "outcome"],
)
WEBHOOK_TRIES = Counter(
    "intraslice_webhook_tries", "Tries to deliver a webhook, by what the receiver did.", ["outcome"]
)

# Gauges of the whole deployment, filled at scrape time.
JOBS = "intraslice_jobs"
OUTBOX_MESSAGES = "intraslice_outbox_messages"
OUTBOX_OLDEST_SECONDS = "intraslice_outbox_oldest_seconds"
DATABASE_UP = "intraslice_database_up"
