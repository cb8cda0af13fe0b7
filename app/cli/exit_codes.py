"""Exit codes of all commands, for use in scripts."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Meaning of a command's exit code."""

    DONE = 0
    FAILED = 1
    """The work failed: a failed or cancelled job, a damaged file, a quality gate."""
    BAD_INPUT = 2
    """An option, a file, a setting or a missing extra; nothing was changed."""
    NOT_ALLOWED = 3
    """The API key is missing, unknown, or lacks the scope."""
    NOT_POSSIBLE = 4
    """The resource does not exist, or its state does not allow the request."""
    UNAVAILABLE = 5
    """The service does not respond or is rate-limiting."""
    INTERRUPTED = 130
    """Ctrl-C."""


TABLE = (
    "Exit codes: 0 success; 1 the work failed; 2 invalid input; 3 API key missing or not "
    "sufficient; 4 resource not found or in the wrong state; 5 service unavailable; "
    "130 interrupted."
)
