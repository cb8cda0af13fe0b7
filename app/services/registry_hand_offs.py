"""Registry hand-off of succeeded jobs' checkpoints to the targets in the deployment's settings.

A job has succeeded before its hand-off begins, and stays so if that fails. No transaction is open
while a worker waits for a registry or a hub.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from app.adapters.database import artifacts, hub_repositories, jobs, registry_hand_offs
from app.adapters.database.engine import Transaction
from app.adapters.finished_checkpoints import read_facts
from app.adapters.mlflow_registry import register_version
from app.adapters.model_hub import push_checkpoint
from app.adapters.server_address import public_address
from app.domain.artifact import ArtifactRecord
from app.domain.errors import (
    ArtifactNotFoundError,
    ArtifactsExpiredError,
    FieldProblem,
    HandOffError,
    IllegalTransitionError,
    InvalidRequestError,
    JobNotFoundError,
    RepositoryTakenError,
    ServiceError,
)
from app.domain.job import JobRecord
from app.domain.lifecycle import State
from app.domain.principal import DEFAULT_PROJECT, Principal
from app.domain.registry_hand_off import (
    TRIES,
    DueHandOff,
    HandedOff,
    HandOff,
    HandOffList,
    HandOffPlace,
    HandOffState,
    pause,
    registered_name,
)
from app.domain.service import HandOffTarget
from app.services.jobs import existing_job, locked_job
from app.services.resources import Resources
from app.settings import Settings
from app.telemetry import get_logger, metrics
from intraslice_core.errors import ConfigurationError, IntraSliceError
from intraslice_core.reports.references import recorded_reference
from intraslice_core.reports.schema import CompressionReport

_LEASE = timedelta(minutes=2)
_DIRECTORY = "hand-off"
_HUB = "https://huggingface.co"
_SETTINGS = {
    HandOffTarget.MLFLOW: "INTRASLICE_HANDOFF_MLFLOW_URI",
    HandOffTarget.HUB: "INTRASLICE_HANDOFF_HUB_NAMESPACE",
}
"""Variables without which there is no hand-off to a target."""
_log = get_logger(__name__)


def configured_targets(settings: Settings) -> tuple[HandOffTarget, ...]:
    """Return the targets that this deployment has settings for."""
    chosen = {
        HandOffTarget.MLFLOW: settings.handoff_mlflow_uri,
        HandOffTarget.HUB: settings.handoff_hub_namespace,
    }
    return tuple(target for target, place in chosen.items() if place)


def automatic_targets(settings: Settings) -> tuple[HandOffTarget, ...]:
    """Return the targets that every checkpoint is handed off to when its job succeeds."""
    return configured_targets(settings) if settings.handoff_automatic else ()


def require_usable(settings: Settings) -> None:
    """Raise at a worker's start if the settings would make every hand-off fail.

    Raises:
        ConfigurationError: naming the variable.
    """
    try:
        registered_name(
            settings.handoff_name, model="m", ratio=0.5, target="research", project=DEFAULT_PROJECT
        )
    except ValueError as error:
        raise ConfigurationError(str(error), field="INTRASLICE_HANDOFF_NAME") from error


def list_hand_offs(resources: Resources, principal: Principal, job_id: str) -> HandOffList:
    """Return the registry hand-offs of a job, and where it can be handed off.

    Raises:
        JobNotFoundError: also if the job is another project's.
    """
    with resources.database.transaction() as transaction:
        job = existing_job(transaction, principal, job_id)
        rows = tuple(registry_hand_offs.of_job(transaction, job.id))
    return HandOffList(data=rows, places=_places(resources.settings, job))


def request_hand_off(
    resources: Resources,
    principal: Principal,
    job_id: str,
    target: HandOffTarget,
    name: str | None,
) -> HandOff:
    """Let a worker hand off a job's checkpoint; repeating a pending request is harmless.

    Args:
        resources: settings and database.
        principal: the caller.
        job_id: a succeeded job.
        target: registry or hub, which the deployment must have.
        name: name there; None selects the deployment's.

    Raises:
        InvalidRequestError: if the deployment has no such target, or the name is another project's.
        IllegalTransitionError: if the job has not succeeded, or another request is pending.
        ArtifactsExpiredError: if the checkpoint has been removed.
    """
    with resources.database.transaction() as transaction:
        job = locked_job(transaction, principal, job_id)
        _require_configured(resources.settings, target)
        if job.state is not State.SUCCEEDED:
            raise IllegalTransitionError(f"The job is {job.state}; only a succeeded one has files")
        if job.expired_at is not None:
            raise ArtifactsExpiredError
        for earlier in registry_hand_offs.of_job(transaction, job.id):
            if earlier.target is target and earlier.state is HandOffState.PENDING:
                if earlier.name == name:
                    return earlier
                raise IllegalTransitionError(f"A hand-off to {target} is pending; wait for its end")
        _require_own_repository(transaction, resources.settings, job, target, name)
        return registry_hand_offs.request(transaction, job.id, target, name)


def _require_configured(settings: Settings, target: HandOffTarget) -> None:
    if target not in configured_targets(settings):
        message = f"this service has no {target} server: its operator sets {_SETTINGS[target]}"
        problem = FieldProblem(pointer="/target", code="not_configured", message=message)
        raise InvalidRequestError("The target is not configured", fields=(problem,))


def _require_own_repository(
    transaction: Transaction,
    settings: Settings,
    job: JobRecord,
    target: HandOffTarget,
    name: str | None,
) -> None:
    """Reserve the repository for the job's project; raise if it is another project's."""
    if target is not HandOffTarget.HUB:
        return
    name = name or _default_name(settings, job)
    if name is None:
        return
    repository = _repository(settings, name)
    if not hub_repositories.own_repository(transaction, job.project_id, repository):
        message = f"the repository {repository} belongs to another project: request another name"
        problem = FieldProblem(pointer="/name", code="taken", message=message)
        raise InvalidRequestError("The name is taken", fields=(problem,))


def _repository(settings: Settings, name: str) -> str:
    return f"{settings.handoff_hub_namespace}/{name}"


def _default_name(settings: Settings, job: JobRecord) -> str | None:
    """Return the name of the job's checkpoint; None if the deployment's template is invalid."""
    config = job.compression
    try:
        return registered_name(
            settings.handoff_name,
            model=recorded_reference(job.model.ref),  # as the report names it, and the push
            ratio=config.ratio,
            target=config.target,
            project=job.project_id,
        )
    except ValueError as error:
        # No worker starts with such a template.
        _log.warning("hand_off_name_invalid", error=str(error))
        return None


def _places(settings: Settings, job: JobRecord) -> tuple[HandOffPlace, ...]:
    """Return the configured targets with the name that the job's checkpoint gets there."""
    name = _default_name(settings, job)
    if name is None:
        return ()
    places = {
        HandOffTarget.MLFLOW: HandOffPlace(
            target=HandOffTarget.MLFLOW,
            url=public_address(settings.handoff_mlflow_uri),
            name=name,
        ),
        HandOffTarget.HUB: HandOffPlace(
            target=HandOffTarget.HUB,
            url=public_address(settings.handoff_hub_endpoint or _HUB),
            namespace=settings.handoff_hub_namespace,
            private=settings.handoff_hub_private,
            name=name,
        ),
    }
    return tuple(places[target] for target in configured_targets(settings))


def claim_due(resources: Resources) -> DueHandOff | None:
    """Claim a due hand-off for this worker; None if none is due."""
    with resources.database.transaction() as transaction:
        return registry_hand_offs.claim(transaction, _LEASE)


def perform(resources: Resources, due: DueHandOff) -> None:
    """Attempt a hand-off and record its outcome."""
    try:
        with _renewed(resources, due), _checkpoint(resources, due) as directory:
            done = _send(resources, due, directory)
    except (ArtifactNotFoundError, JobNotFoundError, RepositoryTakenError) as error:
        _fail(resources, due, error.message, again=False)
    except (ServiceError, IntraSliceError, OSError) as error:
        _fail(resources, due, str(error), again=due.attempt < TRIES)
    else:
        with resources.database.transaction() as transaction:
            registry_hand_offs.finish(transaction, due, done)
        metrics.HAND_OFF_TRIES.labels(due.target, "done").inc()
        _log.info("handed_off", job_id=due.job_id, target=due.target, reference=done.reference)


def _send(resources: Resources, due: DueHandOff, directory: Path) -> HandedOff:
    settings = resources.settings
    if due.target not in configured_targets(settings):
        # It was requested from an API server with other settings; another worker may have them.
        raise HandOffError(f"this worker has no {due.target} server: set {_SETTINGS[due.target]}")
    facts, report = read_facts(directory)
    project_id = _project_id(resources, due)
    name = due.name or _name(settings, report, project_id)
    if due.target is HandOffTarget.MLFLOW:
        return register_version(directory, facts, uri=settings.handoff_mlflow_uri, name=name)
    repository, token = _repository(settings, name), settings.handoff_hub_token
    with _owned_repository(resources, project_id, repository):
        return push_checkpoint(
            directory,
            facts,
            repository=repository,
            # The name, or the model's in a default name, is the caller's, the token the
            # deployment's: it may write to any repository.
            only_results=True,
            endpoint=settings.handoff_hub_endpoint or None,
            token=token.get_secret_value() if token else None,
            private=settings.handoff_hub_private,
        )


def _project_id(resources: Resources, due: DueHandOff) -> str:
    with resources.database.transaction() as transaction:
        job = jobs.find(transaction, due.job_id)
    if job is None:
        raise JobNotFoundError
    return job.project_id


@contextmanager
def _owned_repository(resources: Resources, project_id: str, repository: str) -> Iterator[None]:
    """Reserve the repository for the job's project before any file is written to it.

    Automatic hand-offs are not requested, and those of older API servers reserved nothing. A
    repository that holds files of others, and no result, is freed: it is nobody's here.
    """
    with resources.database.transaction() as transaction:
        if not hub_repositories.own_repository(transaction, project_id, repository):
            raise RepositoryTakenError(
                f"the repository {repository} belongs to another project: request another name"
            )
    try:
        yield
    except RepositoryTakenError:
        with resources.database.transaction() as transaction:
            hub_repositories.free_repository(transaction, project_id, repository)
        raise


def _name(settings: Settings, report: CompressionReport, project_id: str) -> str:
    config = report.config
    try:
        return registered_name(
            settings.handoff_name,
            model=report.model,
            ratio=config.ratio,
            target=config.target,
            project=project_id,
        )
    except ValueError as error:
        raise HandOffError(str(error)) from error


def _fail(resources: Resources, due: DueHandOff, reason: str, *, again: bool) -> None:
    with resources.database.transaction() as transaction:
        if again:
            registry_hand_offs.postpone(transaction, due, reason, pause(due.attempt))
        else:
            registry_hand_offs.give_up(transaction, due, reason)
    metrics.HAND_OFF_TRIES.labels(due.target, "postponed" if again else "failed").inc()
    _log.warning("not_handed_off", job_id=due.job_id, target=due.target, again=again, error=reason)


@contextmanager
def _checkpoint(resources: Resources, due: DueHandOff) -> Iterator[Path]:
    """Yield a temporary directory with the job's published files."""
    with resources.database.transaction() as transaction:
        if jobs.find(transaction, due.job_id) is None:
            raise JobNotFoundError
        files = artifacts.of_job(transaction, due.job_id)
    if not files:
        raise ArtifactNotFoundError("the job's artifacts have been removed")
    directory = _directory(resources, due.job_id, due.target)
    shutil.rmtree(directory, ignore_errors=True)
    try:
        for file in files:
            _fetch(resources, file, directory / file.name)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fetch(resources: Resources, file: ArtifactRecord, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    resources.store.get_file(file.key, target)


def _directory(resources: Resources, job_id: str, target: HandOffTarget) -> Path:
    return resources.work_dir / f"{job_id}.{_DIRECTORY}-{target}"


@contextmanager
def _renewed(resources: Resources, due: DueHandOff) -> Iterator[None]:
    """Renew the claim in a thread while the block runs: large checkpoints take hours."""
    done = threading.Event()

    def keep() -> None:
        while not done.wait(_LEASE.total_seconds() / 4):
            try:
                with resources.database.transaction() as transaction:
                    registry_hand_offs.keep(transaction, due, _LEASE)
            except ServiceError as error:
                _log.warning("hand_off_not_kept", job_id=due.job_id, code=error.code)

    keeper = threading.Thread(target=keep, daemon=True, name=f"hand-off-{due.job_id}")
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()


def remove_stale(resources: Resources) -> None:
    """Remove files that killed workers of this machine fetched for hand-offs that have ended."""
    work = resources.work_dir
    for directory in work.glob(f"*.{_DIRECTORY}-*") if work.is_dir() else ():
        job_id, _, kind = directory.name.partition(".")
        with resources.database.transaction() as transaction:
            rows = registry_hand_offs.of_job(transaction, job_id)
        pending = {f"{_DIRECTORY}-{row.target}" for row in rows if row.next_try_at is not None}
        if kind not in pending:
            shutil.rmtree(directory, ignore_errors=True)
