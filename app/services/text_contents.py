"""Contents of uploaded texts: their records, and the fields that hold text in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from app.domain.upload import TextColumns
from intraslice_core.calibration.record_tally import (
    MOST_EARLY,
    RECORDS_PER_BAD_ONE,
    RecordTally,
)
from intraslice_core.calibration.records import Record, RecordError, document_of
from intraslice_core.calibration.text_files import read_records
from intraslice_core.errors import CalibrationSourceError
from intraslice_core.text_sources import text_format

MOST_RECORDS = 200_000
MOST_BYTES = 2**25
"""Records and bytes, after decompression, that are checked before a job; workers read the rest.

The API server checks them, whose disk may hold no whole text.
"""
_COMPRESSED_FACTOR = 2
"""Most compressed bytes per byte of text: compression adds little to what it cannot shorten."""
_FORMATS = ("jsonl", "json", "csv")
_MOST_FIELDS = 256
_LONGEST_NAME = 200
_BATCH = 1000


def has_records(name: str) -> bool:
    """Return whether the records of a file of this name are checked.

    Those of Parquet and Zstandard files need a package that only workers have.
    """
    return text_format(name) in _FORMATS and not name.lower().endswith(".zst")


def checked_bytes(name: str, size: int) -> int:
    """Return how many bytes of a file `read_columns` reads, at most.

    Args:
        name: name of the file.
        size: its bytes.
    """
    if not has_records(name):
        return 0
    return min(size, MOST_BYTES * (_COMPRESSED_FACTOR if _is_compressed(name) else 1))


def read_columns(file: Path, before_batch: Callable[[], None]) -> TextColumns | None:
    """Read the first records of a text, and return the fields that hold text.

    As in a job, one record in a thousand may be unusable, and ten at the beginning of a text that
    is not read whole.

    Args:
        file: the text, under the name that it was announced by; what follows its `checked_bytes`
            is not read.
        before_batch: called before each thousand records; may raise to stop.

    Returns:
        None if no record ends in what is read.

    Raises:
        CalibrationSourceError: naming the lines, if records cannot be read or hold no text.
    """
    tally, columns = RecordTally(source=file.name), _Columns()
    records = read_records(file, None, most_bytes=MOST_BYTES, on_cut=columns.note_cut)
    try:
        for number, record in enumerate(islice(records, MOST_RECORDS)):
            if number % _BATCH == 0:
                before_batch()
            if record.problem:
                tally.skip(record.place, record.problem)
            else:
                tally.used += 1
                columns.add(record)
        if not columns.is_cut:
            tally.settle(())
    except CalibrationSourceError as error:
        # The directory is one of the server.
        message = error.message.replace(str(file), file.name)
        raise CalibrationSourceError(_printable(message), hint=error.hint) from error
    if columns.is_cut and not tally.used:
        return None
    return columns.result(file.name)


class _Columns:
    """Count of the records that have a known form, and of those with text in each field."""

    def __init__(self) -> None:
        self.is_cut = False
        """True if the text was truncated."""
        self._records = 0
        self._formless = 0
        self._form_problem = ""
        self._first_place = ""
        self._with_text: dict[str, int] = {}
        self._first_without: dict[str, str] = {}

    def add(self, record: Record) -> None:
        """Count a record."""
        self._first_place = self._first_place or record.place
        try:
            document_of(record.content, None)
        except RecordError as error:
            self._formless += 1
            self._form_problem = self._form_problem or _printable(f"{record.place}: {error}")
        fields = _text_fields(record.content)
        for name in fields:
            if name not in self._with_text and len(self._with_text) < _MOST_FIELDS:
                self._with_text[name] = 0
                if self._records:
                    self._first_without[name] = self._first_place
        for name in self._with_text:
            if name in fields:
                self._with_text[name] += 1
            else:
                self._first_without.setdefault(name, record.place)
        self._records += 1

    def note_cut(self) -> None:
        """Record that the text was truncated."""
        self.is_cut = True

    def result(self, name: str) -> TextColumns:
        """Return the fields with text.

        Raises:
            CalibrationSourceError: if there are no records, or none holds text.
        """
        if not self._records:
            raise CalibrationSourceError(f"{name} contains no records")
        form_problem = None if self._is_tolerable(self._formless) else self._form_problem
        if form_problem is not None and not self._with_text:
            raise CalibrationSourceError(f"{name}, {form_problem}, and none holds text")
        places = {
            field: None
            if self._is_tolerable(self._records - count)
            else self._first_without.get(field)
            for field, count in self._with_text.items()
        }
        return TextColumns(form_problem=form_problem, fields=places)

    def _is_tolerable(self, bad: int) -> bool:
        """Return whether a job would read the text with so many bad records.

        Of a truncated text, the next records may show that a few are rare.
        """
        early = self.is_cut and bad <= MOST_EARLY and bad < self._records
        return early or bad * RECORDS_PER_BAD_ONE <= self._records


def _is_compressed(name: str) -> bool:
    return name.lower().endswith(".gz")


def _text_fields(content: Any) -> set[str]:
    """Return the fields that a job may name as `text_field` for this record."""
    if not isinstance(content, Mapping):
        return set()
    return {name for name, value in content.items() if _is_text(content, name, value)}


def _printable(text: str) -> str:
    """Replace what a database cannot store: NUL and lone surrogates, as names may hold them."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _is_text(content: Mapping[str, Any], name: str, value: Any) -> bool:
    if len(name) > _LONGEST_NAME or not name.isprintable():
        return False
    if not isinstance(value, list):
        return isinstance(value, str)
    try:
        document_of(content, name)
    except RecordError:
        return False
    return True
