"""Use cases of workers on generations: claim, renew, answer, end. Every write needs the claim."""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.database import artifacts, generations, jobs, leases, outbox
from app.adapters.database.engine import Transaction
from app.domain.artifact import ArtifactRecord
from app.domain.errors import LeaseLostError
from app.domain.generation import (
    ATTEMPTS,
    LONGEST_WAIT,
    Answer,
    GenerationClaim,
    GenerationError,
    GenerationRecord,
)
from app.domain.job import JobRecord
from app.domain.worker import FreeSlots
from app.services.claims import TIMEOUT, WORKER_LOST
from app.services.resources import Resources
from app.telemetry import get_logger, metrics

_REAPED_AT_ONCE = 50
_LOST = GenerationError(
    code=WORKER_LOST,
    message=f"the worker went silent in each of {ATTEMPTS} attempts",
    hint="send the prompt again",
    retryable=True,
)
_EXPIRED = GenerationError(
    code="expired_in_queue",
    message=f"no worker was free within {LONGEST_WAIT.total_seconds() / 60:.0f} minutes",
    hint="jobs come first: send the prompt again when fewer of them wait",
    retryable=True,
)
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClaimedGeneration:
    """A claimed generation, its job, and the files that the job has published."""

    generation: GenerationRecord
    job: JobRecord
    files: tuple[ArtifactRecord, ...]


def claim_next_generation(
    resources: Resources, owner: str, free: FreeSlots | None
) -> ClaimedGeneration | None:
    """Claim the oldest queued generation for the first of the free slots.

    None without one or without a playground, and while a job waits that the slots could run.
    """
    if not resources.settings.playground:
        return None
    slot = None if free is None else free.slots[0]
    with resources.database.transaction() as transaction:
        if leases.has_waiting(transaction, owner, free, seconds=0):
            return None
        generation = generations.claim_next(
            transaction, owner, resources.settings.lease_seconds, slot
        )
        if generation is None:
            return None
        job = jobs.find(transaction, generation.job_id)
        if job is None:  # the foreign key forbids it
            raise LeaseLostError
        files = tuple(artifacts.of_job(transaction, job.id))
    return ClaimedGeneration(generation=generation, job=job, files=files)


def has_queued(resources: Resources) -> bool:
    """Return whether a generation waits for a worker."""
    return resources.database.read(generations.has_queued)


def renew(resources: Resources, claim: GenerationClaim, slots: FreeSlots | None) -> bool:
    """Renew the lease; return whether to give the slot back to a job that waits for it.

    A job counts once it has waited for a heartbeat: another slot may be free. `slots` are those
    that become free with the generation.

    Raises:
        LeaseLostError: if the generation was cancelled, deleted or claimed by another worker.
    """
    settings = resources.settings
    with resources.database.transaction() as transaction:
        if not generations.renew(transaction, claim, settings.lease_seconds):
            raise LeaseLostError
        return leases.has_waiting(
            transaction, claim.owner, slots, seconds=settings.heartbeat_seconds
        )


def holds_claim(resources: Resources, generation_id: str, token: int) -> bool:
    with resources.database.transaction() as transaction:
        return generations.holds(transaction, generation_id, token)


def add_answer(resources: Resources, claim: GenerationClaim, answer: Answer) -> None:
    """Show an answer to the caller.

    Raises:
        LeaseLostError: if the generation is not this worker's any more.
    """
    with resources.database.transaction() as transaction:
        if not generations.add_answer(transaction, claim, answer):
            raise LeaseLostError


def succeed(resources: Resources, claim: GenerationClaim) -> GenerationRecord:
    with resources.database.transaction() as transaction:
        return _counted(generations.succeed(transaction, claim))


def fail(resources: Resources, claim: GenerationClaim, error: GenerationError) -> GenerationRecord:
    with resources.database.transaction() as transaction:
        return _counted(generations.fail(transaction, claim, error))


def give_back(resources: Resources, claim: GenerationClaim) -> GenerationRecord:
    """Queue the generation again, without counting the attempt."""
    with resources.database.transaction() as transaction:
        return _requeue(transaction, claim, counts=False)


def timeout_error(resources: Resources) -> GenerationError:
    seconds = resources.settings.playground_max_seconds
    return GenerationError(
        code=TIMEOUT,
        message=f"the models did not answer within {seconds} s, loading included",
        hint="lower max_new_tokens, ask one model, or raise INTRASLICE_PLAYGROUND_MAX_SECONDS",
    )


def reap(resources: Resources) -> int:
    """Take generations from silent workers, and fail those that wait too long; return how many.

    The first time that its worker is lost, a generation returns to the queue; then it fails.
    """
    with resources.database.transaction() as transaction:
        reaped = [
            _requeue(transaction, generation.claim, counts=True)
            if generation.attempt < ATTEMPTS
            else _counted(generations.fail(transaction, generation.claim, _LOST))
            for generation in generations.lost(transaction, _REAPED_AT_ONCE)
        ]
        expired = generations.expire_waiting(transaction, _EXPIRED, _REAPED_AT_ONCE)
    for generation in expired:
        metrics.GENERATIONS.labels(generation.state).inc()
    for generation in (*reaped, *expired):
        _log.warning("generation_reaped", generation_id=generation.id, state=generation.state)
    return len(reaped) + len(expired)


def _requeue(transaction: Transaction, claim: GenerationClaim, *, counts: bool) -> GenerationRecord:
    generation = generations.requeue(transaction, claim, counts=counts)
    if generation is None:
        raise LeaseLostError
    outbox.add(transaction, generation.job_id)
    return generation


def _counted(ended: GenerationRecord | None) -> GenerationRecord:
    """Count a generation that has ended, and how long it ran."""
    if ended is None:
        raise LeaseLostError
    metrics.GENERATIONS.labels(ended.state).inc()
    if ended.started_at is not None and ended.finished_at is not None:
        duration = ended.finished_at - ended.started_at
        metrics.GENERATION_SECONDS.observe(duration.total_seconds())
    return ended
