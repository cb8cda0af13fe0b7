"""Use cases of sweeps; their jobs are ordinary jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

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
from app.domain.job import DEFAULT_PRIORITY, JobRequest
from app.domain.lifecycle import TERMINAL
from app.domain.principal import Principal
from app.domain.sweep import MOST_JOBS, MOST_RATIOS, SweepDetails, SweepList, SweepRequest
from app.domain.worker import RequiredMemory
from app.services.jobs import cancel_job, enqueue_job, fingerprint
from app.services.requirements import required_memory
from app.services.resources import Resources
from app.services.upload_facts import admit_request
from intraslice_core.reports.sweep import SweepChild

_FIELDS = {"/compression/ratio": "ratios", "/compression/method": "methods"}
"""List of the sweep from which a field of a job comes."""


@dataclass(frozen=True, kw_only=True)
class SweepCreation:
    """A sweep; `replayed` says that an earlier request with the same key created it."""

    sweep: SweepDetails
    replayed: bool


def create_sweep(
    resources: Resources,
    principal: Principal,
    request: SweepRequest,
    idempotency_key: str | None = None,
) -> SweepCreation:
    """Write the sweep and all of its jobs in one transaction.

    Raises:
        InvalidRequestError: if a job of the sweep would be rejected.
        IdempotencyKeyReusedError: if the key belongs to another request.
    """
    sweep_id = new_id(SWEEP)
    requests = _job_requests(sweep_id, request, request.children)
    needed = _admit_all(resources, principal, request, requests, request.ratios)
    claim = sweeps.Claim(
        project_id=principal.project_id,
        idempotency_key=idempotency_key,
        request_hash=fingerprint(request),
    )
    with resources.database.transaction() as transaction:
        if not sweeps.insert_sweep(transaction, sweep_id, request, claim):
            return _replay(transaction, principal, claim)
        for job_request, memory in zip(requests.values(), needed, strict=True):
            job_id = new_job_id()
            enqueue_job(resources, transaction, principal, job_id, job_request, memory=memory)
        return SweepCreation(sweep=_existing(transaction, principal, sweep_id), replayed=False)


def add_ratios(
    resources: Resources, principal: Principal, sweep_id: str, ratios: Sequence[float]
) -> SweepDetails:
    """Queue the jobs of more ratios with the settings of a sweep.

    Methods and ratios that have a job are left out, so that repeating it is harmless. Those whose
    jobs were deleted are queued again.

    Raises:
        SweepNotFoundError: if the project has no such sweep.
        InvalidRequestError: if a job would be rejected, or the sweep would be too large.
    """
    with resources.database.transaction() as transaction:
        sweep = _existing(transaction, principal, sweep_id)
        present = sweeps.children(transaction, sweep_id)
    request = _more(sweep, ratios)
    missing = [child for child in request.children if child not in present]
    if not missing:
        return sweep
    # Saves the admission of jobs that are then rejected; the check under the lock decides.
    _require_few(present.union(missing))
    requests = _job_requests(sweep_id, request, missing)
    needed = _admit_all(resources, principal, request, requests, ratios)
    with resources.database.transaction() as transaction:
        stored = sweeps.lock(transaction, principal.project_id, sweep_id)
        if stored is None:
            raise SweepNotFoundError
        # Another request may have added some of them in the meantime.
        present = sweeps.children(transaction, sweep_id)
        merged = present.union(missing)
        _require_few(merged)
        sweeps.set_ratios(transaction, sweep_id, _in_use((*stored, *ratios), merged))
        for child, job_request, memory in zip(requests, requests.values(), needed, strict=True):
            if child not in present:
                job_id = new_job_id()
                enqueue_job(resources, transaction, principal, job_id, job_request, memory=memory)
    return get_sweep(resources, principal, sweep_id)


def get_sweep(resources: Resources, principal: Principal, sweep_id: str) -> SweepDetails:
    with resources.database.transaction() as transaction:
        return _existing(transaction, principal, sweep_id)


def list_sweeps(
    resources: Resources, principal: Principal, *, limit: int, before: str | None
) -> SweepList:
    with resources.database.transaction() as transaction:
        page = sweeps.newest(transaction, principal.project_id, limit=limit + 1, before=before)
    return SweepList.of(page, limit)


def cancel_sweep(resources: Resources, principal: Principal, sweep_id: str) -> SweepDetails:
    """Cancel every job that has not ended. Repeating it is harmless.

    Each job in a transaction of its own: one whose worker holds its row for long shall not keep
    the others from being cancelled, and asking again does what is left.
    """
    for job in get_sweep(resources, principal, sweep_id).jobs:
        if job.state in TERMINAL:
            continue
        try:
            cancel_job(resources, principal, job.id)
        except IllegalTransitionError:
            # It has ended in the meantime.
            continue
    return get_sweep(resources, principal, sweep_id)


def is_unfinished(resources: Resources, sweep_id: str) -> bool:
    """Return whether a job of the sweep has not ended."""
    with resources.database.transaction() as transaction:
        progress = sweeps.read_progress(transaction, [sweep_id])[sweep_id]
    return bool(progress.jobs.keys() - TERMINAL)


def _more(sweep: SweepDetails, ratios: Sequence[float]) -> SweepRequest:
    """Return the request of a sweep, at other ratios."""
    return SweepRequest(
        model=sweep.model,
        compression=sweep.compression,
        ratios=tuple(ratios),
        methods=sweep.methods if len(sweep.methods) > 1 else (),
        evaluation=sweep.evaluation,
        labels=sweep.labels,
        priority=sweep.jobs[0].priority if sweep.jobs else DEFAULT_PRIORITY,
    )


def _in_use(ratios: Iterable[float], children: Collection[SweepChild]) -> tuple[float, ...]:
    """Return the ratios that have jobs, each once."""
    present = {child.ratio for child in children}
    return tuple(dict.fromkeys(ratio for ratio in ratios if ratio in present))


def _require_few(children: Collection[SweepChild]) -> None:
    """Raise if a sweep of these jobs is too large."""
    ratios, jobs = len({child.ratio for child in children}), len(children)
    if ratios > MOST_RATIOS:
        code, size, most = "too_many_ratios", f"{ratios} ratios", MOST_RATIOS
    elif jobs > MOST_JOBS:
        code, size, most = "too_many_jobs", f"{jobs} jobs", MOST_JOBS
    else:
        return
    message = f"the sweep would have {size}, at most {most} are allowed: start another sweep"
    problem = FieldProblem(pointer="/ratios", code=code, message=message)
    raise InvalidRequestError("The sweep would be too large", fields=(problem,))


def _job_requests(
    sweep_id: str, request: SweepRequest, children: Iterable[SweepChild]
) -> dict[SweepChild, JobRequest]:
    return {
        child: JobRequest(
            model=request.model,
            compression=request.compression_of(child),
            evaluation=request.evaluation,
            labels=request.labels,
            sweep_id=sweep_id,
            priority=request.priority,
        )
        for child in children
    }


def _admit_all(
    resources: Resources,
    principal: Principal,
    sweep: SweepRequest,
    requests: Mapping[SweepChild, JobRequest],
    ratios: Sequence[float],
) -> list[RequiredMemory]:
    """Return the memory that each job needs; raise if any would be rejected.

    Problems with its ratio point to `/ratios/{index}`, problems with its method to
    `/methods/{index}` where methods are given.

    Args:
        resources: settings, database and store.
        principal: who asks for the jobs.
        sweep: the jobs' common request.
        requests: those of all or some children of `sweep`.
        ratios: those of the body, to which problems point; with those of `sweep` among them.
    """
    problems: dict[FieldProblem, None] = {}
    needed: list[RequiredMemory] = []
    for child, request in requests.items():
        try:
            admitted = admit_request(resources, principal.project_id, request)
            needed.append(required_memory(admitted))
        except InvalidRequestError as error:
            problems |= dict.fromkeys(
                _placed(problem, sweep, child, ratios) for problem in error.fields
            )
    if problems:
        raise InvalidRequestError("A job of the sweep would be rejected", fields=tuple(problems))
    return needed


def _placed(
    problem: FieldProblem, sweep: SweepRequest, child: SweepChild, ratios: Sequence[float]
) -> FieldProblem:
    """Return the problem of a job at the field of the sweep, with the name of a compared method."""
    indices = {"/compression/ratio": ratios.index(child.ratio)}
    if sweep.methods:
        indices["/compression/method"] = sweep.methods.index(child.method)
    if problem.pointer not in indices:
        return problem
    return FieldProblem(
        pointer=f"/{_FIELDS[problem.pointer]}/{indices[problem.pointer]}",
        code=problem.code,
        message=f"{child.method}: {problem.message}" if sweep.methods else problem.message,
    )


def _replay(transaction: Transaction, principal: Principal, claim: sweeps.Claim) -> SweepCreation:
    sweep_id, request_hash = sweeps.find_claimed(transaction, claim)
    if request_hash != claim.request_hash:
        raise IdempotencyKeyReusedError
    return SweepCreation(sweep=_existing(transaction, principal, sweep_id), replayed=True)


def _existing(transaction: Transaction, principal: Principal, sweep_id: str) -> SweepDetails:
    """Return the sweep; those of other projects do not exist for this one."""
    sweep = None
    if is_id(SWEEP, sweep_id):
        sweep = sweeps.find(transaction, principal.project_id, sweep_id)
    if sweep is None:
        raise SweepNotFoundError
    return sweep
