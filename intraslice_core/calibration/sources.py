"""Where text comes from: the one place that reads calibration and evaluation sources."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intraslice_core.calibration.python_text import Part, python_code, python_documentation
from intraslice_core.errors import CalibrationSourceError
from intraslice_core.text_sources import HUB, WRITTEN


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """All sequences, those of each part in their order and evenly spread over the whole.

    What chooses the damping is the end, and a look ahead is the beginning: either holds of every
    part its share, give or take one.

    Args:
        parts: (samples, sequence_length) each, of one length.

    Returns:
        (sum of samples, sequence_length).
    """
    # The place of a sequence is the middle of its slot; equal places go by the order of the parts.
    places = sorted(
        ((2 * row + 1) / (2 * len(part)), index, row)
        for index, part in enumerate(parts)
        for row in range(len(part))
    )
    return torch.stack([parts[index][row] for _, index, row in places])


VALID_SOURCES = (
    "pydoc",
    "pycode",
    "self",
    "chat",
    "hub:DATASET[:CONFIG][@SPLIT]",
    "a path of .txt, .jsonl, .txt.gz or .jsonl.gz",
)

MAX_HUB_CHARACTERS = 64_000_000
"""Read of a hub data set at most: far beyond any calibration, far below a disk."""

MAX_FILE_BYTES = 2**28
"""Of a text file, unpacked: about 60 million tokens. A small .gz may unpack to far more."""

FIELDS: dict[Part, str] = {
    "calibration": "calibration.source",
    "evaluation": "evaluation.perplexity",
}
_DEFAULT_SPLITS: dict[Part, str] = {"calibration": "train", "evaluation": "test"}


def load_text(source: str, *, part: Part) -> list[str]:
    """The documents of a source, without empty ones.

    `pydoc` is split by topic and `pycode` by module, so that no paragraph of a held-out part is in
    a calibration part of either; a hub data set without `@SPLIT` gives `train` or `test`. A file
    is taken whole for either part: name two files.

    Raises:
        CalibrationSourceError: if the source is unknown, cannot be read or holds no text.
    """
    try:
        documents = [text for text in _documents(source, part) if text.strip()]
    except CalibrationSourceError as error:
        error.field = error.field or FIELDS[part]
        raise
    if not documents:
        raise CalibrationSourceError(f"{source} holds no text", field=FIELDS[part])
    return documents


def _documents(source: str, part: Part) -> Iterable[str]:
    """Dispatch by the form of the name."""
    if source == "pydoc":
        return python_documentation(part)
    if source == "pycode":
        return python_code(part)
    if source in WRITTEN:
        raise CalibrationSourceError(
            f"`{source}` is written by the dense model, which is not here",
            hint="name the dense model, or use another text",
        )
    if source.startswith(HUB):
        return _from_hub(source.removeprefix(HUB), part)
    path = Path(source).expanduser()
    if _kind(path) is None:
        raise CalibrationSourceError(
            f"unknown source {source!r}", hint="valid: " + "; ".join(VALID_SOURCES)
        )
    return _from_file(path)


def _kind(path: Path) -> str | None:
    """`.txt` or `.jsonl`, looking below a `.gz`; None for anything else."""
    inner = path.with_suffix("") if path.suffix == ".gz" else path
    return inner.suffix if inner.suffix in {".txt", ".jsonl"} else None


def _from_file(path: Path) -> Iterable[str]:
    """One document of a `.txt`, one a line of a `.jsonl`."""
    text = _read(path)
    return [text] if _kind(path) == ".txt" else _from_json_lines(path, text)


def _read(path: Path) -> str:
    """The file's text, unpacked."""
    if not path.is_file():
        raise CalibrationSourceError(f"there is no file {path}", hint="check the path")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise CalibrationSourceError(f"{path} holds more than {MAX_FILE_BYTES} bytes of text")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationSourceError(f"{path} is not UTF-8 text: {error.reason}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise CalibrationSourceError(f"{path} cannot be read: {error}") from error
    if "\0" in text:
        raise CalibrationSourceError(f"{path} is not text: it holds NUL bytes")
    return text


def _from_json_lines(path: Path, text: str) -> Iterator[str]:
    """The text of every record; a bad line is named, not skipped."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _record_text(json.loads(line))
        except (ValueError, CalibrationSourceError) as error:
            raise CalibrationSourceError(
                f"line {number} of {path} is no record with text: {error}",
                hint='write {"text": "…"} or {"messages": [{"role": "…", "content": "…"}]}',
            ) from error


def _record_text(record: Any) -> str:
    """`text`, or `messages` rendered as `role: content` paragraphs."""
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return str(record["text"])
    messages = record.get("messages") if isinstance(record, dict) else None
    if isinstance(messages, list) and all(map(_is_message, messages)):
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)
    raise CalibrationSourceError("neither a `text` nor `messages`")


def _is_message(turn: Any) -> bool:
    """Whether `turn` is a chat message of plain text."""
    return (
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
    )


def _from_hub(reference: str, part: Part) -> list[str]:
    """Documents of `DATASET[:CONFIG][@SPLIT]`, streamed, so a huge data set costs no disk."""
    import datasets  # type: ignore[import-untyped]

    name, _, split = reference.partition("@")
    dataset, _, config = name.partition(":")
    if not dataset:
        raise CalibrationSourceError("`hub:` names no data set", hint=VALID_SOURCES[-2])
    split = split or _DEFAULT_SPLITS[part]
    documents: list[str] = []
    characters = 0
    try:
        rows = datasets.load_dataset(dataset, config or None, split=split, streaming=True)
        for row in rows:
            documents.append(_record_text(row))
            characters += len(documents[-1])
            if characters >= MAX_HUB_CHARACTERS:
                break
    except CalibrationSourceError:
        raise
    # Network, hub, parquet and missing-split failures share no base class below Exception.
    except Exception as error:
        raise CalibrationSourceError(
            f"data set {dataset} (split {split}) cannot be read: {type(error).__name__}: {error}",
            hint="without access to the hub use pydoc, pycode, self, chat or a file",
        ) from error
    return documents
