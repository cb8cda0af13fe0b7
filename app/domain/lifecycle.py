"""The life of a job as one table. The database enforces it with guarded updates.

queued ──claim──▶ running ──succeed──▶ succeeded
  ▲  │               │ │└─────fail────▶ failed
  │  └─cancel──┐     │ └─request_cancel─▶ cancelling ──cancel──▶ cancelled
  └──requeue───┼─────┘
               └──────▶ cancelled
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Action(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    REQUEUE = "requeue"
    REQUEST_CANCEL = "request_cancel"
    CANCEL = "cancel"


@dataclass(frozen=True, kw_only=True)
class Transition:
    """From which states an action is legal, and where it leads."""

    sources: frozenset[State]
    target: State


LEASED = frozenset({State.RUNNING, State.CANCELLING})
"""States in which exactly one worker owns the job."""

TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

TRANSITIONS: dict[Action, Transition] = {
    Action.CLAIM: Transition(sources=frozenset({State.QUEUED}), target=State.RUNNING),
    Action.SUCCEED: Transition(sources=frozenset({State.RUNNING}), target=State.SUCCEEDED),
    Action.FAIL: Transition(sources=frozenset({State.RUNNING}), target=State.FAILED),
    Action.REQUEUE: Transition(sources=frozenset({State.RUNNING}), target=State.QUEUED),
    Action.REQUEST_CANCEL: Transition(sources=frozenset({State.RUNNING}), target=State.CANCELLING),
    Action.CANCEL: Transition(
        sources=frozenset({State.QUEUED, State.CANCELLING}), target=State.CANCELLED
    ),
}
