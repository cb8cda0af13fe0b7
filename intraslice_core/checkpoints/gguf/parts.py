"""Split GGUF files: `NAME-00001-of-00003.gguf` and its siblings are one model."""

from __future__ import annotations

import re
from pathlib import Path

from intraslice_core.checkpoints.gguf.header import MAX_TENSORS, GgufHeader, GgufTensor, read_header
from intraslice_core.errors import BrokenCheckpointError

MAX_PARTS = 2_000

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
_PART, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def model_name(file: Path) -> str:
    """Return the file's name without its ending and without the number of the part."""
    match = _PART_NAME.fullmatch(file.name)
    return match["stem"] if match else file.stem


def model_key(file: Path) -> tuple[str, str | None]:
    """Return a key that the parts of one split model share: its name and the number of parts."""
    match = _PART_NAME.fullmatch(file.name)
    return model_name(file), match["count"] if match else None


def read_gguf_header(file: Path) -> GgufHeader:
    """Return the header of a GGUF model; all parts of a split model are read.

    Args:
        file: the file, or any part of a split model.

    Raises:
        BrokenCheckpointError: naming the file, if a part is missing, if the parts do not belong
            together, or if a header is invalid.
    """
    files = _parts(file)
    headers = [read_header(part) for part in files]
    values = headers[0].values
    count = values.get(_COUNT, 0)
    if len(files) == 1 and type(count) is int and count > 1:
        raise BrokenCheckpointError(
            f"{file.name} is one of {count} parts, but its name is not NAME-00001-of-{count:05}"
            ".gguf",
            field="model",
            hint="give the parts the names that they were published with",
        )
    if len(files) == 1:
        return headers[0]
    tensors = _joined(headers)
    return GgufHeader(files=files, values=values, tensors=tensors)


def _parts(file: Path) -> tuple[Path, ...]:
    """Return the files of the model that a file belongs to.

    Raises:
        BrokenCheckpointError: naming the part that is missing.
    """
    match = _PART_NAME.fullmatch(file.name)
    if match is None:
        return (file,)
    count = int(match["count"])
    if not 1 <= int(match["part"]) <= count <= MAX_PARTS:
        raise BrokenCheckpointError(
            f"{file.name}: part {int(match['part'])} of {count} is not plausible", field="model"
        )
    parts = tuple(
        file.with_name(f"{match['stem']}-{part:05}-of-{count:05}.gguf")
        for part in range(1, count + 1)
    )
    for part in parts:
        if not part.is_file():
            raise BrokenCheckpointError(
                f"{part.name} is missing; the model has {count} parts",
                field="model",
                hint="put all parts into one directory",
            )
    return parts


def _joined(headers: list[GgufHeader]) -> dict[str, GgufTensor]:
    """Return the tensors of all parts.

    Raises:
        BrokenCheckpointError: naming the part that does not belong to the others.
    """
    tensors: dict[str, GgufTensor] = {}
    for part, header in enumerate(headers):
        numbers = (header.values.get(_PART), header.values.get(_COUNT))
        if numbers != (part, len(headers)):
            raise BrokenCheckpointError(
                f"{header.name}: {_PART} {numbers[0]} and {_COUNT} {numbers[1]} contradict its "
                "name",
                field="model",
            )
        duplicates = tensors.keys() & header.tensors.keys()
        if duplicates:
            raise BrokenCheckpointError(
                f"{header.name}: tensor {min(duplicates)} is stored twice", field="model"
            )
        tensors |= header.tensors
    total = headers[0].values.get(_TENSORS, len(tensors))
    if total != len(tensors) or len(tensors) > MAX_TENSORS:
        raise BrokenCheckpointError(
            f"{headers[0].name}: {_TENSORS} is {total}, the parts have {len(tensors)} tensors",
            field="model",
            hint="download the parts again",
        )
    return tensors
