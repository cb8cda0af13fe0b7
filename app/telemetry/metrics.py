"""Names, labels and buckets of all metrics.

Each process exports its own values, which Prometheus sums. Values of the whole deployment, such as
the number of queued jobs, are read from the database at scrape time: see
`app/services/monitoring.py`.
"""

from __future__ import annotations

import math

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

# Omit the second series of each counter, its creation time, which we do not use.
disable_created_metrics()  # type: ignore[no-untyped-call]

_MINUTE, _HOUR = 60.0, 3600.0
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG_BUCKETS = (
    *(1.0, 2.0, 5.0, 10.0, 30.0),
    *(_MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE),
    *(_HOUR, 2 * _HOUR, 4 * _HOUR, 8 * _HOUR, 16 * _HOUR, 24 * _HOUR),
)
"""Durations from one second to one day."""

REQUEST_SECONDS = Histogram(
    "intraslice_http_request_seconds",
    "Time to the first byte of HTTP responses (seconds); streams may last longer.",
    ["method", "route", "status"],
    buckets=_REQUEST_BUCKETS,
)
QUEUE_WAIT_SECONDS = Histogram(
    "intraslice_job_queue_wait_seconds",
    "Time from a job's creation to its first claim (seconds).",
    buckets=_LONG_BUCKETS,
)
JOB_SECONDS = Histogram(
    "intraslice_job_seconds",
    "Time for which workers ran a job, without queue and pauses (seconds), by final state.",
    ["state"],
    buckets=_LONG_BUCKETS,
)
STAGE_SECONDS = Histogram(
    "intraslice_job_stage_seconds",
    "Duration of the stages of attempts (seconds).",
    ["stage"],
    buckets=_LONG_BUCKETS,
)
JOBS_CLAIMED = Counter("intraslice_jobs_claimed", "Attempts started.")
JOBS_REAPED = Counter(
    "intraslice_jobs_reaped", "Jobs taken from silent workers, by new state.", ["state"]
)
LEASES_LOST = Counter("intraslice_leases_lost", "Attempts that ended because they lost the lease.")
CHILD_DEATHS = Counter(
    "intraslice_child_deaths",
    "Engine processes that exited without a message, by error code.",
    ["kind"],
)
STORE_ERRORS = Counter("intraslice_store_errors", "Failed requests to the artifact store.")
STORE_OWNED = Gauge(
    "intraslice_store_owned",
    "1 if the artifact store carries this deployment's marker; at 0 nothing is deleted.",
)
STORE_OWNED.set(math.nan)  # until it has been checked, which is not an alarm
ARTIFACTS_MISSED = Counter(
    "intraslice_artifacts_missed", "Succeeded jobs whose artifacts a check missed in the store."
)
JOBS_EXPIRED = Counter(
    "intraslice_jobs_expired", "Jobs whose artifacts were removed after their retention."
)
ORPHANS_REMOVED = Counter(
    "intraslice_orphans_removed", "Objects without an owner removed from the artifact store."
)
GENERATIONS = Counter(
    "intraslice_generations", "Generations of the playground that ended, by final state.", ["state"]
)
GENERATION_SECONDS = Histogram(
    "intraslice_generation_seconds",
    "Time from the claim of a generation to its end (seconds).",
    buckets=_LONG_BUCKETS,
)
HAND_OFF_TRIES = Counter(
    "intraslice_hand_off_tries",
    "Attempts to hand a checkpoint off to a registry or hub, by outcome.",
    ["target", "outcome"],
)
WEBHOOK_TRIES = Counter(
    "intraslice_webhook_tries", "Attempts to deliver a webhook, by outcome.", ["outcome"]
)
PREVIOUS_OPERATOR_KEY_REQUESTS = Counter(
    "intraslice_previous_operator_key_requests",
    "Requests with the previous operator key; without any, it can be removed.",
)

# Gauges of the whole deployment, read at scrape time.
JOBS = "intraslice_jobs"
JOBS_MISSING_ARTIFACTS = "intraslice_jobs_missing_artifacts"
OUTBOX_MESSAGES = "intraslice_outbox_messages"
OUTBOX_OLDEST_SECONDS = "intraslice_outbox_oldest_seconds"
WEBHOOKS_ON_PREVIOUS_KEY = "intraslice_webhooks_on_previous_key"
JOBS_WAITING = "intraslice_jobs_waiting"
GENERATIONS_LIVE = "intraslice_generations_live"
DEVICES = "intraslice_devices"
DATABASE_UP = "intraslice_database_up"
