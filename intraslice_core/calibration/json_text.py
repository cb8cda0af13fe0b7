"""JSON records of text files, read one by one: a record per line, or an array of records.

Memory is bounded by `MAX_RECORD_CHARACTERS`. Of a longer record, the beginning is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TextIO

from intraslice_core.calibration.records import Record, RecordError, require_text
from intraslice_core.errors import CalibrationSourceError

MAX_RECORD_CHARACTERS = 2**24
"""Characters that are read of one record: about four million tokens."""

_CHUNK = 2**16
_TOO_DEEP = "its values are nested too deeply"
_DEEPEST = 200
"""Depth above which an incomplete record is not completed."""

_GAP = re.compile(r"[\s,]*")
# Possessive quantifiers keep no state for backtracking, which would need more than the text.
_PART = re.compile(
    r'"(?:[^"\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*+("?)'
    r'|[\[\]{}]|[^"\[\]{}]++',
    re.DOTALL,
)


def json_lines(stream: TextIO) -> Iterator[Record]:
    """Yield the record of each line that is not blank."""
    number = 0
    while line := stream.readline(MAX_RECORD_CHARACTERS):
        number += 1
        complete = line.endswith("\n") or len(line) < MAX_RECORD_CHARACTERS
        if line.strip():
            yield _line_record(line, f"line {number}", complete=complete)
        while not complete:
            chunk = stream.readline(_CHUNK)
            complete = chunk.endswith("\n") or not chunk


def json_values(stream: TextIO, *, path: str) -> Iterator[Record]:
    """Yield the elements of a JSON array, or the values of a file that is none.

    Raises:
        CalibrationSourceError: at a value whose end is not found, because nothing after it can be
            read.
    """
    values = _Values(stream, path)
    is_array = values.skip("[")
    while not (is_array and values.skip("]")):
        if values.at_end():
            if is_array:
                raise values.error("the array does not end")
            return
        yield values.next_record()


class _Values:
    """JSON values that follow each other in a stream."""

    def __init__(self, stream: TextIO, path: str) -> None:
        self._stream = stream
        self._path = path
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._position = 0
        self._line = 1
        self._cut = False

    def skip(self, bracket: str) -> bool:
        """Skip a bracket if it comes next; report whether it did."""
        if self.at_end() or self._text[self._position] != bracket:
            return False
        self._position += 1
        return True

    def at_end(self) -> bool:
        """Skip whitespace and commas; report whether nothing follows."""
        while True:
            gap = _GAP.match(self._text, self._position)
            assert gap is not None  # the pattern matches the empty text
            self._advance(gap.end())
            if self._position < len(self._text):
                return False
            if not self._read_more():
                return True

    def next_record(self) -> Record:
        """Return the next value, which must begin at the position.

        Raises:
            CalibrationSourceError: if it is invalid, or the one before it was too long.
        """
        if self._cut:
            raise self.error(
                f"the record before is longer than {MAX_RECORD_CHARACTERS} characters",
                hint="write one record per line, as .jsonl",
            )
        place = f"line {self._line}"
        while True:
            try:
                content, end = self._decoder.raw_decode(self._text, self._position)
                break
            except RecursionError:
                raise self.error(_TOO_DEEP) from None
            except ValueError as error:
                if len(self._text) - self._position >= MAX_RECORD_CHARACTERS:
                    self._cut = True
                    beginning = self._text[self._position :][:MAX_RECORD_CHARACTERS]
                    self._position = len(self._text)
                    return _line_record(beginning, place, complete=False)
                if not self._read_more():
                    raise self.error(f"{error}") from None
        self._advance(end)
        return Record(place=place, content=content)

    def error(self, reason: str, *, hint: str | None = None) -> CalibrationSourceError:
        """Return an error at the current line."""
        return CalibrationSourceError(
            f"{self._path}, line {self._line}: {reason}",
            hint=hint or "check that the file is complete, or write one record per line, as .jsonl",
        )

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._position, end)
        self._position = end

    def _read_more(self) -> bool:
        """Double the text after the position, so that long values are tried only a few times."""
        rest = self._text[self._position :]
        added = self._stream.read(min(max(_CHUNK, len(rest)), MAX_RECORD_CHARACTERS))
        self._text, self._position = rest + added, 0
        return bool(added)


def _line_record(text: str, place: str, *, complete: bool) -> Record:
    """Parse one record; of an incomplete one, the part that was read."""
    try:
        # Undecodable bytes would be reported as broken JSON, or be hidden in a field's name.
        require_text(text)
        return Record(place=place, content=json.loads(text if complete else _completed(text)))
    except RecursionError:
        return Record(place=place, problem=_TOO_DEEP)
    except RecordError as error:
        return Record(place=place, problem=str(error))
    except ValueError as error:
        return Record(place=place, problem=f"not JSON: {error}")


def _completed(beginning: str) -> str:
    """Return the longest beginning that ends within or after a value, with all brackets closed.

    Raises:
        RecordError: if there is none.
    """
    stack: list[str] = []
    end, closing, before = 0, "", ""
    for part in _PART.finditer(beginning):
        first = beginning[part.start()]
        if first == '"':
            if before == ":" or stack[-1:] != ["}"]:  # not the name of a field
                end = part.end()
                closing = ("" if part.group(1) else '"') + "".join(reversed(stack))
            if not part.group(1):
                break
        elif first in "[{":
            stack.append("]" if first == "[" else "}")
        elif first in "]}" and stack:
            stack.pop()
            end, closing = part.end(), "".join(reversed(stack))
        before = (part.group().rstrip() or before)[-1] if first != '"' else first
        if len(stack) > _DEEPEST:
            raise RecordError(_TOO_DEEP)
    if not end:
        raise RecordError(f"no text in its first {len(beginning)} characters")
    return beginning[:end] + closing
