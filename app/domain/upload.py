"""Files that clients bring along: a model's directory, or a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase

from pydantic import Field

from app.domain.errors import FieldProblem
from intraslice_core.config import FrozenModel

UPLOADS_PREFIX = "uploads/"
REFERENCE = "upload:"
"""What texts begin with that are uploads: `upload:upl_…`."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}", re.ASCII)
_MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*")
_TEXT_FILES = ("*.txt", "*.jsonl", "*.txt.gz", "*.jsonl.gz")
_CONFIG = "config.json"
MOST_FILES = 2_100


class UploadKind(StrEnum):
    """What an upload can be used as."""

    MODEL = "model"
    TEXT = "text"


class UploadState(StrEnum):
    """`open` takes parts; `ready` can be named in jobs; `refused` says why in `error`."""

    OPEN = "open"
    VERIFYING = "verifying"
    READY = "ready"
    REFUSED = "refused"


class UploadFile(FrozenModel):
    """A file as it will be when it is complete."""

    name: str = Field(min_length=1, max_length=200)
    bytes: int = Field(ge=1, le=2**50)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class UploadRequest(FrozenModel):
    """Which files will come."""

    kind: UploadKind
    files: tuple[UploadFile, ...] = Field(min_length=1, max_length=MOST_FILES)
    name: str | None = None
    """What people call it."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class UploadError(FrozenModel):
    """Why an upload was refused."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a file, small enough to be sent again."""

    file: int
    """The file's place in the upload."""
    number: int
    bytes: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What was announced, and how far it is."""

    id: str
    project_id: str
    kind: UploadKind
    state: UploadState
    files: tuple[UploadFile, ...]
    part_bytes: int
    name: str | None
    created_at: datetime
    expires_at: datetime | None
    """None: never."""
    error: UploadError | None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def parts(self, file: int) -> Iterator[Part]:
        """Of one file, in order; all but the last are of the same size."""
        size = self.files[file].bytes
        for number, start in enumerate(range(0, size, self.part_bytes)):
            yield Part(
                file=file,
                number=number,
                bytes=min(self.part_bytes, size - start),
                key=f"{upload_prefix(self.id)}{file}/{number:06d}",
            )

    def all_parts(self) -> Iterator[Part]:
        for file in range(len(self.files)):
            yield from self.parts(file)


def upload_prefix(upload_id: str) -> str:
    return f"{UPLOADS_PREFIX}{upload_id}/"


def upload_of_prefix(prefix: str) -> str:
    """The id in an `upload_prefix`."""
    return prefix.removeprefix(UPLOADS_PREFIX).rstrip("/")


def name_problems(request: UploadRequest) -> list[FieldProblem]:
    """What is wrong with the announced files, by their names."""
    problems = [
        FieldProblem(pointer=f"/files/{index}/name", code=code, message=message)
        for index, file in enumerate(request.files)
        for code, message in _wrong_with(file.name, request.kind)
    ]
    names = [file.name for file in request.files]
    if len(set(names)) != len(names):
        problems.append(_about_all("twice", "a name is there twice"))
    if request.kind is UploadKind.TEXT and len(names) != 1:
        problems.append(_about_all("one_file", "a text is one file"))
    if request.kind is UploadKind.MODEL:
        if _CONFIG not in names:
            problems.append(_about_all("config_missing", f"a model has a {_CONFIG}"))
        if not any(name.endswith(".safetensors") for name in names):
            problems.append(_about_all("weights_missing", "a model has .safetensors files"))
    return problems


def is_model_file(name: str) -> bool:
    """Whether a model's upload takes a file of this name."""
    return not any(_wrong_with(name, UploadKind.MODEL))


def _wrong_with(name: str, kind: UploadKind) -> Iterator[tuple[str, str]]:
    if not _NAME.fullmatch(name):
        yield "malformed", "letters, digits, dots, dashes; no directories"
        return
    allowed = _MODEL_FILES if kind is UploadKind.MODEL else _TEXT_FILES
    if not any(fnmatchcase(name, pattern) for pattern in allowed):
        yield "not_allowed", f"a {kind} consists of {', '.join(allowed)}; pickles can run code"


def _about_all(code: str, message: str) -> FieldProblem:
    return FieldProblem(pointer="/files", code=code, message=message)
