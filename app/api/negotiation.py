"""Content negotiation by the `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.errors import NotAcceptableError

JSON, HTML, PLAIN = "application/json", "text/html", "text/plain"


def preferred(accept: str | None, offered: Sequence[str]) -> str:
    """Return the offered media type of highest quality; of equal ones, the first.

    Args:
        accept: the header, or None.
        offered: media types, ours first.

    Raises:
        NotAcceptableError: if the client wants none of them.
    """
    ranges = [_range(item) for item in (accept or "*/*").split(",")]
    qualities = [_quality(media_type, ranges) for media_type in offered]
    best = max(qualities)
    if best <= 0.0:
        raise NotAcceptableError(
            f"This is there as {' or '.join(offered)} only; ask for one of them"
        )
    return offered[qualities.index(best)]


def _range(text: str) -> tuple[str, float]:
    """Return a media range and its quality, 0 if it is malformed."""
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
    """Return the quality of the most specific range that contains the type."""
    for candidate in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        qualities = [quality for name, quality in ranges if name == candidate]
        if qualities:
            return max(qualities)
    return 0.0
