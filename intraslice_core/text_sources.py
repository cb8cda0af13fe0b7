"""What texts are called, and what is known of one by its name alone."""

from __future__ import annotations

from collections.abc import Iterable

WRITTEN = frozenset({"self", "chat"})
"""The dense model writes these: `self` freely, `chat` as conversations."""

NAMED = frozenset({"pydoc", "pycode"}) | WRITTEN
"""On every machine, without a file or a network."""

HUB = "hub:"

WRITING_CACHE_BYTES = 2**30
"""Of keys and values while a model writes: more sequences at once are faster, and take more."""

FLATTERS = "only text of the calibration's own kind is scored: the result flatters"


TOLERATED_OVERLAP = 0.01
"""Part of a text's runs of 13 tokens that its calibration may have seen: phrases and headings that
two parts of one collection share."""


def seen_before(text: str, fraction: float) -> str:
    """What is said of a text that is scored and has been calibrated on."""
    name = text.rsplit("/", 1)[-1]
    return f"{fraction:.1%} of the 13-token runs of {name} were calibrated on: its score flatters"


def kind_of(source: str) -> str:
    """The source without what names a part of it: the splits of a data set are of one kind."""
    return source.partition("@")[0] if source.startswith(HUB) else source


def only_own_kind(calibrated: Iterable[str], evaluated: Iterable[str]) -> bool:
    """Whether nothing but kinds of text that were calibrated on is evaluated."""
    kinds = {kind_of(source) for source in evaluated}
    return bool(kinds) and kinds <= {kind_of(source) for source in calibrated}
