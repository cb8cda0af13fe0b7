"""Records of tables: CSV files and Parquet files, read row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from intraslice_core.calibration.json_text import MAX_RECORD_CHARACTERS
from intraslice_core.calibration.records import KNOWN_FIELDS, Record
from intraslice_core.errors import CalibrationSourceError

_DELIMITERS = ",;\t"
_ROWS_AT_ONCE = 16
"""Rows of a Parquet file in memory at once; a row may be a whole book."""


def csv_rows(stream: TextIO, *, path: Path) -> Iterator[Record]:
    """Yield the rows of a CSV file as objects with the fields of its header line.

    The delimiter is the most frequent one of comma, semicolon and tab in the header line.

    Raises:
        CalibrationSourceError: if a cell does not end, because no row after it can be read.
    """
    csv.field_size_limit(MAX_RECORD_CHARACTERS)
    lines = iter(partial(stream.readline, MAX_RECORD_CHARACTERS), "")
    header = next(lines, "")
    rows = csv.reader(
        chain([header], lines), delimiter=max(_DELIMITERS, key=header.count), strict=True
    )
    names: list[str] | None = None
    start = 1
    try:
        for row in rows:
            if names is None:
                names = [name.strip() for name in row]
            elif len(row) > len(names):
                yield Record(
                    place=f"line {start}",
                    problem=f"{len(row)} cells, but the header has {len(names)}",
                )
            elif row:
                yield Record(place=f"line {start}", content=dict(zip(names, row, strict=False)))
            start = rows.line_num + 1
    except csv.Error as error:
        raise CalibrationSourceError(
            f"{path}, line {start}: {error}", hint="check the quotation marks of this row"
        ) from error


def parquet_rows(path: Path, text_field: str | None) -> Iterator[Record]:
    """Yield the rows of a Parquet file as objects with the columns that may hold text.

    Raises:
        CalibrationSourceError: if the file cannot be read.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    wanted = {text_field, "tools"} if text_field else set(KNOWN_FIELDS)
    number = 0
    try:
        with ParquetFile(path) as file:
            # Images and other columns that are not read may be larger than the texts.
            columns = [name for name in file.schema_arrow.names if name in wanted]
            if not columns:
                columns = file.schema_arrow.names
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in range(batch.num_rows):
                    number += 1
                    yield _parquet_record(batch.slice(row, 1), f"row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise CalibrationSourceError(f"{path} cannot be read: {error}") from error


def _parquet_record(row: Any, place: str) -> Record:
    try:
        return Record(place=place, content=row.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Record(place=place, problem=f"not UTF-8 text: {error.reason}")
