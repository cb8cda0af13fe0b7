"""Errors about a training's text, by the names of a training's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from intraslice_core.errors import CalibrationError, CalibrationTooShortError


@contextmanager
def blaming_recover() -> Iterator[None]:
    """The text is read as a calibration's is; what is wrong with it is not the calibration.

    Raises:
        CalibrationError: naming `max_tokens` where there is too little text, else `source`.
    """
    try:
        yield
    except CalibrationError as error:
        too_short = isinstance(error, CalibrationTooShortError)
        error.field = f"compression.recover.{'max_tokens' if too_short else 'source'}"
        raise
