"""What a client does with sweeps; their jobs are ordinary jobs."""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.database import jobs as job_rows
from app.adapters.database import sweeps
from app.adapters.database.engine import Transaction
from app.domain.errors import (
    FieldProblem,
    IdempotencyKeyReusedError,
    IllegalTransitionError,
    InvalidRequestError,
    SweepNotFoundError,
)
from app.domain.identifiers import SWEEP, is_id, new_id, new_job_id
from app.domain.job import Job, JobRequest
from app.domain.lifecycle import TERMINAL
from app.domain.principal import Principal
from app.domain.sweep import Sweep, SweepProgress, SweepRequest, smallest_ratio_first
from app.services.admission import admit
from app.services.jobs import cancel_job, enqueue_job, fingerprint
from app.services.resources import Resources
from app.services.uploads import locator

_OF_A_JOB = "/compression/ratio"


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """A sweep and how far it is."""

    sweep: Sweep
    progress: SweepProgress


@dataclass(frozen=True, kw_only=True)
class SweepDetails(SweepView):
    """A sweep with its jobs, smallest ratio first."""

    jobs: list[Job]


@dataclass(frozen=True, kw_only=True)
class SweepCreation:
    """The sweep, and whether an earlier request had made it."""

    details: SweepDetails
    replayed: bool


@dataclass(frozen=True, kw_only=True)
class SweepPage:
    """Some sweeps, newest first."""

    sweeps: list[SweepView]
    has_more: bool


def create_sweep(
    resources: Resources,
    principal: Principal,
    request: SweepRequest,
    idempotency_key: str | None = None,
) -> SweepCreation:
    """Write the sweep and all of its jobs in one transaction.

    Raises:
        InvalidRequestError: if a job of the sweep would be refused.
        IdempotencyKeyReusedError: if the key belongs to another request.
    """
    sweep_id = new_id(SWEEP)
    requests = _job_requests(sweep_id, request)
    _admit_all(resources, principal, requests)
    claim = sweeps.Claim(
        project_id=principal.project_id,
        idempotency_key=idempotency_key,
        request_hash=fingerprint(request),
    )
    with resources.database.transaction() as transaction:
        sweep = sweeps.insert_sweep(transaction, sweep_id, request, claim)
        if sweep is None:
            return _replay(transaction, claim)
        for one in requests:
            enqueue_job(resources, transaction, principal, new_job_id(), one)
        return SweepCreation(details=_details(transaction, sweep), replayed=False)


def get_sweep(resources: Resources, principal: Principal, sweep_id: str) -> SweepDetails:
    with resources.database.transaction() as transaction:
        return _details(transaction, _existing(transaction, principal, sweep_id))


def list_sweeps(
    resources: Resources, principal: Principal, *, limit: int, before: str | None
) -> SweepPage:
    with resources.database.transaction() as transaction:
        found = sweeps.newest(transaction, principal.project_id, limit=limit + 1, before=before)
        progress = sweeps.progress(transaction, [sweep.id for sweep in found[:limit]])
    return SweepPage(
        sweeps=[SweepView(sweep=one, progress=progress[one.id]) for one in found[:limit]],
        has_more=len(found) > limit,
    )


def cancel_sweep(resources: Resources, principal: Principal, sweep_id: str) -> SweepDetails:
    """Cancel every job that has not ended. Asking twice is fine.

    Each job in a transaction of its own: one whose worker holds its row for long shall not keep
    the others from being cancelled, and asking again does what is left.
    """
    for job in get_sweep(resources, principal, sweep_id).jobs:
        if job.state in TERMINAL:
            continue
        try:
            cancel_job(resources, principal, job.id)
        except IllegalTransitionError:
            # It has ended since we looked, which is as good.
            continue
    return get_sweep(resources, principal, sweep_id)


def is_unfinished(resources: Resources, sweep_id: str) -> bool:
    """Whether a job of the sweep is still to be worked on."""
    with resources.database.transaction() as transaction:
        states = sweeps.progress(transaction, [sweep_id])[sweep_id].states
    return bool(states.keys() - TERMINAL)


def _job_requests(sweep_id: str, request: SweepRequest) -> list[JobRequest]:
    return [
        JobRequest(
            model=request.model,
            compression=request.compression_at(ratio),
            evaluation=request.evaluation,
            labels=request.labels,
            sweep_id=sweep_id,
            priority=request.priority,
        )
        for ratio in request.ratios
    ]


def _admit_all(resources: Resources, principal: Principal, requests: list[JobRequest]) -> None:
    """Refuse the sweep if any of its jobs would be; a job's ratio is named by its place here."""
    problems: dict[FieldProblem, None] = {}
    locate = locator(resources, principal.project_id)
    for index, request in enumerate(requests):
        try:
            admit(resources.settings, request, locate)
        except InvalidRequestError as error:
            problems |= dict.fromkeys(_placed(one, index) for one in error.fields)
    if problems:
        raise InvalidRequestError("A job of the sweep would be refused", fields=tuple(problems))


def _placed(problem: FieldProblem, index: int) -> FieldProblem:
    if problem.pointer != _OF_A_JOB:
        return problem
    return FieldProblem(pointer=f"/ratios/{index}", code=problem.code, message=problem.message)


def _replay(transaction: Transaction, claim: sweeps.Claim) -> SweepCreation:
    sweep, request_hash = sweeps.find_claimed(transaction, claim)
    if request_hash != claim.request_hash:
        raise IdempotencyKeyReusedError
    return SweepCreation(details=_details(transaction, sweep), replayed=True)


def _existing(transaction: Transaction, principal: Principal, sweep_id: str) -> Sweep:
    """What belongs to another project does not exist for this one."""
    found = None
    if is_id(SWEEP, sweep_id):
        found = sweeps.find(transaction, principal.project_id, sweep_id)
    if found is None:
        raise SweepNotFoundError
    return found


def _details(transaction: Transaction, sweep: Sweep) -> SweepDetails:
    jobs = sorted(job_rows.of_sweep(transaction, sweep.id), key=smallest_ratio_first)
    told = [(job.state, job.progress.fraction if job.progress else None) for job in jobs]
    return SweepDetails(sweep=sweep, progress=SweepProgress.of(told), jobs=jobs)
