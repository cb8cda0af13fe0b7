"""Exit codes of all commands, for scripts to tell what happened."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's end means."""

    DONE = 0
    FAILED = 1
    """The work itself: a job that failed or was cancelled, a damaged file, a gate not passed."""
    BAD_INPUT = 2
    """An option, a file or a setting; nothing was done."""
    NOT_ALLOWED = 3
    """No key, a wrong one, or one without the scope."""
    NOT_POSSIBLE = 4
    """There is no such thing, or its state does not allow this."""
    UNAVAILABLE = 5
    """The service does not answer, or asks to come back later."""
    INTERRUPTED = 130
    """Ctrl-C."""


TABLE = (
    "Exit codes: 0 done; 1 the work failed; 2 bad input; 3 not allowed; 4 no such thing, or not in "
    "this state; 5 the service is away; 130 interrupted."
)
