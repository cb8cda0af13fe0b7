"""Random sequences of requests, worker writes and lost workers never break a generation.

The test compares a model of one generation with the real one in PostgreSQL. A dead worker is a
claim that is not renewed, and its late writes are tried too.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from app.domain.errors import IllegalTransitionError, LeaseLostError
from app.domain.generation import (
    ATTEMPTS,
    LIVE,
    GenerationClaim,
    GenerationError,
    GenerationState,
    PlaygroundModel,
)
from app.domain.job import Job
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import generation_claims, generations
from app.services.resources import Resources
from tests.app.builders import in_state
from tests.app.generating import answer, prompted, read, silence_workers

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
ERROR = GenerationError(code="out_of_memory", message="killed")
QUEUED, RUNNING = GenerationState.QUEUED, GenerationState.RUNNING


class Lifecycle(RuleBasedStateMachine):
    """One generation, any number of workers."""

    resources: ClassVar[Resources]
    job: ClassVar[Job]
    claims = Bundle("claims")

    @initialize()
    def send_prompt(self) -> None:
        # The original would be looked up on disk.
        models = (PlaygroundModel.COMPRESSED,)
        self.generation = prompted(self.resources, self.job, models=models)
        self.state, self.attempt, self.answers = QUEUED, 0, 0
        self.current: GenerationClaim | None = None

    @rule(target=claims, owner=st.sampled_from(["a", "b"]))
    def worker_claims(self, owner: str) -> object:
        claim = generation_claims.claim_next_generation(self.resources, owner, None)
        assert (claim is not None) == (self.state is QUEUED)
        if claim is None:
            return multiple()
        assert claim.generation.prompt == self.generation.prompt
        self.state, self.attempt, self.current = RUNNING, self.attempt + 1, claim.generation.claim
        return self.current

    @rule(claim=claims, write=st.sampled_from(["answer", "succeed", "fail", "give_back", "renew"]))
    def worker_writes(self, claim: GenerationClaim, write: str) -> None:
        try:
            self.write(claim, write)
        except LeaseLostError:
            assert claim != self.current, "the current claim may write"
            return
        assert claim == self.current, "only the current claim may write"
        if write == "answer":
            self.answers += 1
        elif write == "give_back":
            self.state, self.attempt, self.answers = QUEUED, self.attempt - 1, 0
        elif write in ("succeed", "fail"):
            self.state = GenerationState.SUCCEEDED if write == "succeed" else GenerationState.FAILED
        if write not in ("answer", "renew"):
            self.current = None

    def write(self, claim: GenerationClaim, write: str) -> None:
        if write == "answer":
            compressed = answer(PlaygroundModel.COMPRESSED)
            generation_claims.add_answer(self.resources, claim, compressed)
        elif write == "succeed":
            generation_claims.succeed(self.resources, claim)
        elif write == "fail":
            generation_claims.fail(self.resources, claim, ERROR)
        elif write == "give_back":
            generation_claims.give_back(self.resources, claim)
        else:
            assert generation_claims.renew(self.resources, claim, None) is False

    @rule()
    def worker_is_lost(self) -> None:
        silence_workers(self.resources)
        assert generation_claims.reap(self.resources) == (self.state is RUNNING)
        if self.state is RUNNING:
            again = self.attempt < ATTEMPTS
            self.state = QUEUED if again else GenerationState.FAILED
            self.answers = 0 if again else self.answers
            self.current = None

    @rule()
    def caller_cancels(self) -> None:
        cancellable = self.state in LIVE or self.state is GenerationState.CANCELLED
        try:
            generations.cancel_generation(self.resources, OPERATOR, self.job.id, self.generation.id)
        except IllegalTransitionError:
            assert not cancellable
        else:
            assert cancellable
            self.state, self.current = GenerationState.CANCELLED, None

    @invariant()
    def row_equals_the_model(self) -> None:
        row = read(self.resources, self.generation)
        assert (row.state, row.attempt, len(row.answers)) == (
            self.state,
            self.attempt,
            self.answers,
        )
        assert (row.finished_at is None) == (row.state in LIVE)
        assert (row.error is None) == (row.state is not GenerationState.FAILED)

    def teardown(self) -> None:
        with self.resources.database.transaction() as transaction:
            transaction.execute(text("DELETE FROM generations"))


def test_a_generation_equals_its_model(resources: Resources) -> None:
    Lifecycle.resources = resources
    Lifecycle.job = in_state(resources, State.SUCCEEDED)
    run_state_machine_as_test(
        Lifecycle,
        settings=settings(
            max_examples=10,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
