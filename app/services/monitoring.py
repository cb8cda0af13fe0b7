"""Backlog of the deployment for metrics, and the status of the service for its callers."""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.database import (
    generations,
    jobs,
    leases,
    outbox,
    retention,
    webhooks,
    workers,
)
from app.adapters.database.engine import Transaction
from app.domain.errors import BrokerUnavailableError
from app.domain.generation import GenerationState
from app.domain.lifecycle import State
from app.domain.principal import Principal, Scope
from app.domain.service import Service
from app.domain.worker import WaitingCode
from app.services.fleet import count_devices, count_waiting
from app.services.generations import playground_of
from app.services.registry_hand_offs import configured_targets
from app.services.resources import Resources
from intraslice_core import __version__


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Work that is not done yet."""

    jobs: dict[State, int]
    """Number of jobs in each state that is not terminal; ended jobs are counted as they end."""
    messages: int
    oldest_message_seconds: float
    jobs_missing_artifacts: int
    """Succeeded jobs whose files were missed in the store."""
    webhooks_on_previous_key: int | None
    """Enabled webhooks whose secret needs the previous signing key; None without such a key."""
    waiting: dict[WaitingCode, int]
    """Number of queued jobs that no registered worker can run, by reason."""
    devices: dict[str, int]
    """Number of registered devices, by kind."""
    generations: dict[GenerationState, int]
    """Number of generations of the playground in each state that is not terminal."""


def service_status(resources: Resources, principal: Principal) -> Service:
    """Return the caller's rights, its project's live jobs, and the deployment's workers.

    Like `measure_backlog`, it counts live jobs only and stays cheap as the tables grow.
    """
    with resources.database.transaction() as transaction:
        live = jobs.count_live(transaction, principal.project_id)
        busy = leases.count_busy_workers(transaction)
        fleet = workers.live(transaction, principal.project_id)
    return Service(
        version=__version__,
        project=principal.project_id,
        scopes=tuple(scope for scope in Scope if scope in principal.scopes),
        jobs=live,
        busy_workers=busy,
        workers=_count_workers(resources, max(busy, len(fleet))),
        hand_off_targets=configured_targets(resources.settings),
        fleet=fleet,
        playground=playground_of(resources.settings),
    )


def _count_workers(resources: Resources, seen: int) -> int | None:
    """Return the number of live workers, at least those seen in the database; None if unknown.

    Workers of earlier releases announce themselves to the broker only.
    """
    try:
        return max(resources.workers.count(), seen)
    except BrokerUnavailableError:
        return None


def measure_backlog(resources: Resources) -> Backlog:
    """Count live jobs and unsent messages; cheap, because no other rows are read."""
    with resources.database.transaction() as transaction:
        messages, oldest = outbox.count(transaction)
        return Backlog(
            jobs=jobs.count_live(transaction),
            messages=messages,
            oldest_message_seconds=oldest,
            jobs_missing_artifacts=retention.count_missing(transaction),
            webhooks_on_previous_key=_count_on_previous_key(transaction, resources),
            waiting=count_waiting(transaction),
            devices=count_devices(transaction),
            generations=generations.count_live(transaction),
        )


def _count_on_previous_key(transaction: Transaction, resources: Resources) -> int | None:
    """Return the number of webhooks to rotate before the previous signing key is removed."""
    if resources.settings.signing_key_previous is None:
        return None
    stored = webhooks.enabled_secrets(transaction)
    return sum(resources.webhook_secrets.needs_previous_key(*secret) for secret in stored)
