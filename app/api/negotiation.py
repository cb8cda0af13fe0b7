"""Which of its representations a client wants: the `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.errors import NotAcceptableError

JSON, HTML = "application/json", "text/html"


def preferred(accept: str | None, offered: Sequence[str]) -> str:
    """The offered media type of the highest quality; of equal ones, the one offered first.

    Args:
        accept: the header, or None.
        offered: media types, ours first.

    Raises:
        NotAcceptableError: if the client wants none of them.
    """
    ranges = [_range(one) for one in (accept or "*/*").split(",")]
    qualities = [_quality(media_type, ranges) for media_type in offered]
    best = max(qualities)
    if best <= 0.0:
        raise NotAcceptableError(
            f"This is there as {' or '.join(offered)} only; ask for one of them"
        )
    return offered[qualities.index(best)]


def _range(text: str) -> tuple[str, float]:
    """A media range and its quality; what cannot be read counts as 0."""
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = min(max(float(value), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return name, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range that it is in."""
    for candidate in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in ranges if name == candidate]
        if found:
            return max(found)
    return 0.0
