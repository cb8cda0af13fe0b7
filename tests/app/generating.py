"""Generations in any state, created by the service's own functions."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import text

from app.domain.generation import Answer, Generation, GenerationRequest, PlaygroundModel
from app.domain.job import Job
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import generation_claims, generations
from app.services.generation_claims import ClaimedGeneration
from app.services.resources import Resources
from tests.app.builders import in_state

PROMPT = "The secret of a prompt is"


def answer(model: PlaygroundModel, answer_text: str = "…") -> Answer:
    return Answer(
        model=model,
        text=answer_text,
        finish_reason="length",
        prompt_tokens=5,
        new_tokens=8,
        seconds=0.5,
        tokens_per_second=16.0,
        load_seconds=1.5,
    )


def prompted(resources: Resources, job: Job | None = None, **changes: object) -> Generation:
    """Queue a prompt for a succeeded job."""
    job = job or in_state(resources, State.SUCCEEDED)
    request = replace(GenerationRequest(prompt=PROMPT, max_new_tokens=8), **changes)  # type: ignore[arg-type]
    return generations.create_generation(resources, OPERATOR, job.id, request)


def claimed(resources: Resources, owner: str = "worker-1") -> ClaimedGeneration:
    claim = generation_claims.claim_next_generation(resources, owner, None)
    assert claim is not None
    return claim


def read(resources: Resources, generation: Generation) -> Generation:
    return generations.get_generation(resources, OPERATOR, generation.job_id, generation.id)


def silence_workers(resources: Resources) -> None:
    """Let every lease of a generation expire."""
    statement = (
        "UPDATE generations SET lease_expires_at = now() - interval '1 s'"
        " WHERE lease_expires_at IS NOT NULL"
    )
    with resources.database.transaction() as transaction:
        transaction.execute(text(statement))
