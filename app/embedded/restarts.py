"""How often a crashed member is started again."""

from __future__ import annotations

from collections.abc import Sequence

_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)
_WINDOW_SECONDS = 300.0


def next_delay(now: float, crashes: Sequence[float]) -> float | None:
    """Seconds to wait before the next start, or None when it has crashed too often.

    `crashes` holds the times of all crashes, this one included; those that are long past do not
    count, so a member that fails once a day is started for ever.
    """
    recent = sum(1 for crash in crashes if now - crash < _WINDOW_SECONDS)
    return _DELAYS[recent - 1] if recent <= len(_DELAYS) else None
