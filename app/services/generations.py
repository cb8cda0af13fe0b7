"""Use cases of the playground's callers: create, read, cancel and delete generations."""

from __future__ import annotations

from app.adapters.database import generations, outbox
from app.adapters.database.engine import Transaction
from app.domain.errors import (
    ArtifactsExpiredError,
    FieldProblem,
    GenerationNotFoundError,
    IllegalTransitionError,
    InvalidRequestError,
    PlaygroundDisabledError,
    TooManyGenerationsError,
)
from app.domain.generation import (
    GENERATION,
    Generation,
    GenerationList,
    GenerationRecord,
    GenerationRequest,
    GenerationState,
    Playground,
    PlaygroundModel,
)
from app.domain.identifiers import is_id, new_id
from app.domain.job import JobRecord
from app.domain.lifecycle import State
from app.domain.principal import Principal
from app.services.admission import admit_model
from app.services.jobs import existing_job, locked_job
from app.services.resources import Resources
from app.services.uploads import locator
from app.settings import Settings
from app.telemetry import metrics


def playground_of(settings: Settings) -> Playground | None:
    """Return the limits of the playground; None if it is off."""
    if not settings.playground:
        return None
    return Playground(
        max_prompt_bytes=settings.playground_max_prompt_bytes,
        max_new_tokens=settings.playground_max_new_tokens,
        max_seconds=settings.playground_max_seconds,
        max_queued=settings.playground_max_queued,
    )


def create_generation(
    resources: Resources, principal: Principal, job_id: str, request: GenerationRequest
) -> Generation:
    """Write a generation and a message that wakes a worker, in one transaction.

    Raises:
        JobNotFoundError: also if the job is another project's.
        PlaygroundDisabledError: if the playground is off.
        IllegalTransitionError: if the job has not succeeded.
        ArtifactsExpiredError: if the job's files have been removed.
        InvalidRequestError: if a limit is exceeded, or the original model cannot be used any more.
        TooManyGenerationsError: if too many of the key's generations have not ended.
    """
    job = resources.database.read(lambda reading: existing_job(reading, principal, job_id))
    playground = playground_of(resources.settings)
    if playground is None:
        raise PlaygroundDisabledError
    _require_files(job)
    problems = playground.problems(request)
    if not problems and PlaygroundModel.DENSE in request.models:
        problems = _problems_of_original(resources, job)
    if problems:
        raise InvalidRequestError("The prompt cannot be sent as it is", fields=tuple(problems))
    with resources.database.transaction() as transaction:
        _require_files(locked_job(transaction, principal, job_id))
        if generations.count_of_key(transaction, principal.key_id) >= playground.max_queued:
            raise TooManyGenerationsError(
                f"{playground.max_queued} prompts of this key have not ended; wait for one or"
                " cancel it"
            )
        generation = generations.insert_new(
            transaction, new_id(GENERATION), job_id, principal.key_id, request
        )
        outbox.add(transaction, job_id)
    return generation


def get_generation(
    resources: Resources, principal: Principal, job_id: str, generation_id: str
) -> Generation:
    with resources.database.transaction() as transaction:
        return _existing(transaction, principal, job_id, generation_id)


def list_generations(
    resources: Resources, principal: Principal, job_id: str, *, limit: int, before: str | None
) -> GenerationList:
    with resources.database.transaction() as transaction:
        existing_job(transaction, principal, job_id)
        page = generations.newest(transaction, job_id, before=before, limit=limit + 1)
    return GenerationList.of(page, limit)


def cancel_generation(
    resources: Resources, principal: Principal, job_id: str, generation_id: str
) -> Generation:
    """Cancel a generation at once. Repeating it is harmless.

    Raises:
        IllegalTransitionError: if it has ended otherwise.
    """
    with resources.database.transaction() as transaction:
        generation = _existing(transaction, principal, job_id, generation_id)
        cancelled = generations.cancel(transaction, generation_id)
        if cancelled is None:
            generation = _existing(transaction, principal, job_id, generation_id)
            if generation.state is not GenerationState.CANCELLED:
                raise IllegalTransitionError(
                    f"The generation has {generation.state}; it cannot be cancelled"
                )
            return generation
    metrics.GENERATIONS.labels(cancelled.state).inc()
    return cancelled


def delete_generation(
    resources: Resources, principal: Principal, job_id: str, generation_id: str
) -> None:
    """Delete the prompt and the answers of a generation that has ended.

    Raises:
        IllegalTransitionError: if it has not ended.
    """
    with resources.database.transaction() as transaction:
        generation = _existing(transaction, principal, job_id, generation_id)
        if not generations.remove(transaction, generation_id):
            raise IllegalTransitionError(f"The generation is {generation.state}; cancel it first")


def _existing(
    transaction: Transaction, principal: Principal, job_id: str, generation_id: str
) -> GenerationRecord:
    """Return a generation of one of the principal's jobs."""
    existing_job(transaction, principal, job_id)
    generation = (
        generations.find(transaction, job_id, generation_id)
        if is_id(GENERATION, generation_id)
        else None
    )
    if generation is None:
        raise GenerationNotFoundError
    return generation


def _require_files(job: JobRecord) -> None:
    if job.state is not State.SUCCEEDED:
        raise IllegalTransitionError(
            f"The job is {job.state}; only a succeeded one has a model to try"
        )
    if job.expired_at is not None:
        raise ArtifactsExpiredError


def _problems_of_original(resources: Resources, job: JobRecord) -> list[FieldProblem]:
    """Return a problem if the model that the job has compressed may not be read any more."""
    try:
        admit_model(resources.settings, job.model, locator(resources, job.project_id))
    except InvalidRequestError as error:
        first = error.fields[0]
        message = f"the original model cannot be used: {first.message}; ask for compressed alone"
        return [FieldProblem(pointer="/models", code=first.code, message=message)]
    return []
