"""Generations of the playground: one prompt, continued by both models of a succeeded job.

queued  ──claim──▶ running     ──expire──▶ failed  ──cancel──▶ cancelled
running ──succeed──▶ succeeded ──fail──▶ failed    ──requeue──▶ queued  ──cancel──▶ cancelled

A generation is for somebody who waits in front of a screen: it is cancelled at once, and expires if
no worker is free in time. Jobs come first: a worker gives a generation back when a job is queued.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from app.domain.errors import FieldProblem
from app.domain.resource import ApiModel, Page, Resource

GENERATION = "gen"
"""Prefix of the ids."""
ATTEMPTS = 2
"""Claims after which a generation fails if its worker is lost: one repetition."""
LONGEST_WAIT = timedelta(minutes=15)
"""Time after its creation at which a queued generation fails."""


class PlaygroundModel(StrEnum):
    """A model of a job that can continue a prompt."""

    DENSE = "dense"
    COMPRESSED = "compressed"


class GenerationState(StrEnum):
    """State of a generation."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class GenerationAction(StrEnum):
    """Action that changes a generation's state."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    REQUEUE = "requeue"
    EXPIRE = "expire"
    CANCEL = "cancel"


@dataclass(frozen=True, kw_only=True)
class GenerationTransition:
    """States from which an action is legal, and the state it leads to."""

    sources: frozenset[GenerationState]
    target: GenerationState


def _from(*sources: GenerationState, to: GenerationState) -> GenerationTransition:
    return GenerationTransition(sources=frozenset(sources), target=to)


LIVE = frozenset({GenerationState.QUEUED, GenerationState.RUNNING})
"""States of a generation that has not ended."""

TRANSITIONS: dict[GenerationAction, GenerationTransition] = {
    GenerationAction.CLAIM: _from(GenerationState.QUEUED, to=GenerationState.RUNNING),
    GenerationAction.SUCCEED: _from(GenerationState.RUNNING, to=GenerationState.SUCCEEDED),
    GenerationAction.FAIL: _from(GenerationState.RUNNING, to=GenerationState.FAILED),
    GenerationAction.REQUEUE: _from(GenerationState.RUNNING, to=GenerationState.QUEUED),
    GenerationAction.EXPIRE: _from(GenerationState.QUEUED, to=GenerationState.FAILED),
    # At once, also of a running one: its worker loses the lease and kills the process.
    GenerationAction.CANCEL: _from(*LIVE, to=GenerationState.CANCELLED),
}


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A generation to be created."""

    prompt: str
    max_new_tokens: int
    temperature: float | None = None
    """None decodes greedily."""
    seed: int = 0
    models: tuple[PlaygroundModel, ...] = tuple(PlaygroundModel)


class Playground(ApiModel):
    """Limits of the playground, where it is on."""

    max_prompt_bytes: int = Field(description="Longest prompt, in bytes of UTF-8.")
    max_new_tokens: int = Field(description="Most tokens of an answer.")
    max_seconds: int = Field(description="Seconds after which a running generation fails.")
    max_queued: int = Field(description="Generations of one key that have not ended.")

    def problems(self, request: GenerationRequest) -> list[FieldProblem]:
        """Return the fields of a request that exceed the limits."""
        problems = []
        if len(request.prompt.encode()) > self.max_prompt_bytes:
            problems.append(
                FieldProblem(
                    pointer="/prompt",
                    code="string_too_long",
                    message=f"at most {self.max_prompt_bytes} bytes are allowed here",
                )
            )
        if request.max_new_tokens > self.max_new_tokens:
            problems.append(
                FieldProblem(
                    pointer="/max_new_tokens",
                    code="less_than_equal",
                    message=f"must be at most {self.max_new_tokens}",
                )
            )
        return problems


class Answer(ApiModel):
    """Continuation of the prompt by one model, and how long it took."""

    model: PlaygroundModel
    text: str = Field(description="The continuation, without the prompt.")
    finish_reason: Literal["stop", "length"] = Field(
        description="`stop`: the model ended its answer; `length`: at `max_new_tokens`."
    )
    prompt_tokens: int
    new_tokens: int
    seconds: float = Field(description="Time of the answer, the prompt's processing included.")
    tokens_per_second: float = Field(description="New tokens divided by `seconds`.")
    load_seconds: float = Field(description="Time to load the model and its tokenizer.")


class GenerationError(ApiModel):
    """Reason why a generation failed."""

    code: str
    message: str
    field: str | None = None
    hint: str | None = None
    retryable: bool = Field(default=False, description="A new generation may succeed.")


_EXAMPLE: JsonDict = {
    "id": "gen_01KAS4A1C6V8N3Z5T7W9Y2B4DF",
    "object": "generation",
    "job_id": "job_01KAS3ZK5E8H2N9PWT4Y7M1QRV",
    "state": "succeeded",
    "prompt": "The capital of France is",
    "max_new_tokens": 8,
    "temperature": None,
    "seed": 0,
    "models": ["compressed"],
    "answers": [
        {
            "model": "compressed",
            "text": " Paris.",
            "finish_reason": "stop",
            "prompt_tokens": 5,
            "new_tokens": 3,
            "seconds": 0.25,
            "tokens_per_second": 12.0,
            "load_seconds": 1.5,
        }
    ],
    "error": None,
    "attempt": 1,
    "created_at": "2026-03-02T03:00:00Z",
    "started_at": "2026-03-02T03:00:01Z",
    "finished_at": "2026-03-02T03:00:09Z",
}


class Generation(Resource):
    """One prompt, continued by models of a job on a worker."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    object: Literal["generation"] = "generation"
    job_id: str
    state: GenerationState
    prompt: str
    max_new_tokens: int
    temperature: float | None = Field(description="null: the most likely token each time.")
    seed: int
    models: tuple[PlaygroundModel, ...]
    answers: tuple[Answer, ...] = Field(
        description="In the order of `models`; while it runs, those that are ready."
    )
    error: GenerationError | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class GenerationClaim:
    """A worker's exclusive right to run a generation, with the fencing token of its attempt."""

    generation_id: str
    owner: str
    token: int


class GenerationRecord(Generation):
    """A generation with the fields that only the service sees; they are never serialised."""

    fencing_token: int = Field(exclude=True)
    lease_owner: str | None = Field(exclude=True)

    @property
    def claim(self) -> GenerationClaim:
        """The claim of the worker that runs the generation.

        Raises:
            ValueError: if no worker runs it.
        """
        if self.lease_owner is None:
            raise ValueError(f"{self.id} has no lease: no worker runs it")
        return GenerationClaim(
            generation_id=self.id, owner=self.lease_owner, token=self.fencing_token
        )


class GenerationList(Page[Generation]):
    """One page of a job's generations, newest first."""
