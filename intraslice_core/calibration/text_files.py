"""Text files: their formats, decompression and decoding.

Files are read as far as their text is needed, whatever their size. Memory does not depend on the
length of lines.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from intraslice_core.calibration.json_text import json_lines, json_values
from intraslice_core.calibration.records import Record, RecordError, require_text
from intraslice_core.calibration.tables import csv_rows, parquet_rows
from intraslice_core.errors import CalibrationSourceError
from intraslice_core.files import is_lfs_pointer
from intraslice_core.text_sources import text_format

MAX_FILE_BYTES = 2**32
"""Most bytes that are read of a file after decompression: about a billion tokens.

Reading ends there as at the end of the file, so that a small archive of blank lines cannot keep a
worker busy for hours.
"""

_CHUNK = 2**16
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class _ReadLimitReachedError(Exception):
    """`MAX_FILE_BYTES` were read."""


def is_plain_text(path: Path) -> bool:
    """Return True if the whole file is one document."""
    return text_format(path.name) in {"txt", "md"}


def read_chunks(path: Path) -> Iterator[str]:
    """Yield the text of a file that is one document.

    Raises:
        CalibrationSourceError: if the file cannot be read, or is not UTF-8 text.
    """
    line = 1
    with _opened(path) as stream, suppress(_ReadLimitReachedError):
        while chunk := stream.read(_CHUNK):
            _require_valid(path, chunk, line)
            yield chunk
            line += chunk.count("\n")


def read_records(
    path: Path,
    text_field: str | None,
    *,
    most_bytes: int = MAX_FILE_BYTES,
    on_cut: Callable[[], None] = lambda: None,
) -> Iterator[Record]:
    """Yield the records of a file.

    Args:
        path: the file.
        text_field: field that holds the text; only Parquet files, which have no limit, need it.
        most_bytes: bytes that are read after decompression, as if the file ended there.
        on_cut: called if the file does not end there.

    Raises:
        CalibrationSourceError: if the file cannot be read, or its structure is broken so that
            nothing after the fault can be read.
    """
    form = text_format(path.name)
    if form == "parquet":
        _require_file(path)
        yield from parquet_rows(path, text_field)
        return
    is_json = form == "json" or (form == "jsonl" and _first_character(path) == "[")
    with _opened(path, most_bytes) as stream:
        try:
            if form == "csv":
                yield from csv_rows(stream, path=path)
            elif is_json:
                yield from json_values(stream, path=str(path))
            else:
                yield from json_lines(stream)
        except _ReadLimitReachedError:
            on_cut()


def _require_valid(path: Path, chunk: str, line: int) -> None:
    try:
        require_text(chunk)
    except RecordError:
        # Only now is the exact line needed.
        for number, text in enumerate(chunk.split("\n"), start=line):
            try:
                require_text(text)
            except RecordError as error:
                raise CalibrationSourceError(
                    f"{path}, line {number}: {error}",
                    hint="convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
                    if _is_utf_16(path)
                    else "convert it to UTF-8, or remove what is no text",
                ) from error


def _is_utf_16(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) in _UTF_16


def _first_character(path: Path) -> str:
    """Return the first character of a file that is not whitespace; empty if there is none."""
    with _opened(path) as stream, suppress(_ReadLimitReachedError):
        while chunk := stream.read(_CHUNK):
            if text := chunk.lstrip():
                return text[0]
    return ""


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise CalibrationSourceError(f"{path} is a directory", hint="name one file of text")
    if not path.is_file():
        raise CalibrationSourceError(
            f"{path} does not exist or is not a file", hint="check the path"
        )
    if is_lfs_pointer(path):
        raise CalibrationSourceError(
            f"{path} is a git-lfs pointer, not the file itself",
            hint=f"run `git lfs pull` in {path.parent}",
        )


@contextmanager
def _opened(path: Path, most_bytes: int = MAX_FILE_BYTES) -> Iterator[TextIO]:
    """Open a file as text: decompressed, without a byte order mark, with Unix line ends.

    Undecodable bytes become lone surrogates, so that the line that contains them can be named.
    """
    _require_file(path)
    try:
        with _decompressed(path) as stream:
            limited = io.BufferedReader(_LimitedReader(stream, most_bytes))
            yield io.TextIOWrapper(limited, encoding="utf-8-sig", errors="surrogateescape")
    except (OSError, EOFError, zlib.error) as error:
        raise CalibrationSourceError(
            f"{path} cannot be read: {error}", hint="check that the file is complete"
        ) from error


def _decompressed(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("BinaryIO", gzip.open(path))
    if suffix == ".zst":
        import pyarrow

        return cast("BinaryIO", pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return path.open("rb")


class _LimitedReader(io.RawIOBase):
    """Stream that raises after a number of bytes."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._left <= 0:
            raise _ReadLimitReachedError
        content = self._stream.read(min(len(buffer), self._left))
        buffer[: len(content)] = content
        self._left -= len(content)
        return len(content)
