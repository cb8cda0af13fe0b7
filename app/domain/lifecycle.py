"""The lifecycle of a job as one table. The database enforces it: guarded updates, and a trigger.

queued     ──claim──▶ running     ──expire──▶ failed
           ──pause──▶ paused      ──cancel──▶ cancelled
running    ──succeed──▶ succeeded ──fail──▶ failed     ──requeue──▶ queued
           ──request_pause──▶ pausing  ──request_cancel──▶ cancelling
pausing    ──pause──▶ paused      ──succeed──▶ succeeded  ──fail──▶ failed
           ──request_cancel──▶ cancelling
paused     ──resume──▶ queued     ──cancel──▶ cancelled
cancelling ──cancel──▶ cancelled
failed, cancelled  ──retry──▶ queued
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Action(StrEnum):
    """Action that changes a job's state."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    EXPIRE = "expire"
    REQUEUE = "requeue"
    REQUEST_PAUSE = "request_pause"
    PAUSE = "pause"
    RESUME = "resume"
    REQUEST_CANCEL = "request_cancel"
    CANCEL = "cancel"
    RETRY = "retry"


@dataclass(frozen=True, kw_only=True)
class Transition:
    """States from which an action is legal, and the state it leads to."""

    sources: frozenset[State]
    target: State


LEASED = frozenset({State.RUNNING, State.PAUSING, State.CANCELLING})
"""States in which exactly one worker owns the job."""

TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


def _from(*sources: State, to: State) -> Transition:
    return Transition(sources=frozenset(sources), target=to)


TRANSITIONS: dict[Action, Transition] = {
    Action.CLAIM: _from(State.QUEUED, to=State.RUNNING),
    # A job whose result was ready before its worker saw the pause request has succeeded.
    Action.SUCCEED: _from(State.RUNNING, State.PAUSING, to=State.SUCCEEDED),
    Action.FAIL: _from(State.RUNNING, State.PAUSING, to=State.FAILED),
    Action.EXPIRE: _from(State.QUEUED, to=State.FAILED),
    Action.REQUEUE: _from(State.RUNNING, to=State.QUEUED),
    Action.REQUEST_PAUSE: _from(State.RUNNING, to=State.PAUSING),
    Action.PAUSE: _from(State.QUEUED, State.PAUSING, to=State.PAUSED),
    Action.RESUME: _from(State.PAUSED, to=State.QUEUED),
    Action.REQUEST_CANCEL: _from(State.RUNNING, State.PAUSING, to=State.CANCELLING),
    Action.CANCEL: _from(State.QUEUED, State.PAUSED, State.CANCELLING, to=State.CANCELLED),
    Action.RETRY: _from(State.FAILED, State.CANCELLED, to=State.QUEUED),
}


def legal_changes() -> frozenset[tuple[State, State]]:
    """Return every pair of states that some action connects."""
    return frozenset(
        (source, transition.target)
        for transition in TRANSITIONS.values()
        for source in transition.sources
    )
