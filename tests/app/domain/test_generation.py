"""Lifecycle of a generation as a table, and the limits of the playground."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.domain.generation import (
    LIVE,
    TRANSITIONS,
    GenerationAction,
    GenerationRequest,
    GenerationState,
    Playground,
)

LIMITS = Playground(max_prompt_bytes=8, max_new_tokens=16, max_seconds=60, max_queued=2)


@given(st.lists(st.sampled_from(GenerationAction)))
def test_any_sequence_of_actions_ends_at_most_once(actions: list[GenerationAction]) -> None:
    state, endings = GenerationState.QUEUED, 0
    for action in actions:
        transition = TRANSITIONS[action]
        if state not in transition.sources:
            continue
        assert state in LIVE, "an ended generation stays as it is"
        state = transition.target
        endings += state not in LIVE
    assert endings == (state not in LIVE)


def test_a_live_generation_can_always_be_cancelled_and_only_a_running_one_answers() -> None:
    assert TRANSITIONS[GenerationAction.CANCEL].sources == LIVE
    for action in (GenerationAction.SUCCEED, GenerationAction.FAIL, GenerationAction.REQUEUE):
        assert TRANSITIONS[action].sources == {GenerationState.RUNNING}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.integers(1, 40))
def test_the_prompt_is_limited_in_bytes_and_the_answer_in_tokens(prompt: str, tokens: int) -> None:
    request = GenerationRequest(prompt=prompt, max_new_tokens=tokens)
    pointers = [problem.pointer for problem in LIMITS.problems(request)]
    is_long = len(prompt.encode("utf-8")) > 8
    assert pointers == ["/prompt"] * is_long + ["/max_new_tokens"] * (tokens > 16)
