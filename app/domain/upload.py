"""Uploads: the directory of a model, or a text file, sent by a client in parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal, Self

from pydantic import Field

from app.domain.errors import FieldProblem
from app.domain.resource import ApiModel, Page, Resource
from intraslice_core.config import FrozenModel
from intraslice_core.text_sources import TEXT_FILE_PATTERNS, text_format

UPLOADS_PREFIX = "uploads/"
REFERENCE = "upload:"
"""Prefix of text sources that are uploads: `upload:upl_…`."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}", re.ASCII)
_MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*")
_CONFIG = "config.json"
MOST_FILES = 2_100


class UploadKind(StrEnum):
    """Use of an upload in a job."""

    MODEL = "model"
    TEXT = "text"


class UploadState(StrEnum):
    """State of an upload: open for parts, in verification, ready for jobs, or refused."""

    OPEN = "open"
    VERIFYING = "verifying"
    READY = "ready"
    REFUSED = "refused"


class UploadFile(FrozenModel):
    """An announced file."""

    name: str = Field(min_length=1, max_length=200)
    bytes: int = Field(ge=1, le=2**50)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class UploadRequest(FrozenModel):
    """Files to be uploaded."""

    kind: UploadKind
    files: tuple[UploadFile, ...] = Field(min_length=1, max_length=MOST_FILES)
    name: str | None = None
    """Name for people to find the upload by."""

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files)


class UploadError(FrozenModel):
    """Reason why an upload was refused."""

    code: str
    message: str


class TextColumns(FrozenModel):
    """Fields that hold text in the records of an upload, as far as they were read."""

    form_problem: str | None = None
    """Reason why records without `text_field` cannot be read, with the line; None if they can."""
    fields: dict[str, str | None]
    """First record without text by field; None if as good as all have it."""

    def problem(self, text_field: str | None) -> str | None:
        """Return why a job with this `text_field` could not read the text; None if it could."""
        if text_field is None:
            if self.form_problem is None:
                return None
            hint = "name the field that holds the text in text_field, or call it text"
            return f"{self.form_problem}; {hint}{self._choices()}"
        if text_field not in self.fields:
            return f"no record has text in the field {text_field!r}{self._choices()}"
        place = self.fields[text_field]
        if place is None:
            return None
        return f"{place} has no text in the field {text_field!r}{self._choices()}"

    def _choices(self) -> str:
        """Return the fields with text in all records, in parentheses."""
        names = [name for name, place in self.fields.items() if place is None]
        return f" (possible: {', '.join(names)})" if names else ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a file and its place in the store; small enough to be sent again."""

    file: int
    """Index of the file in the upload."""
    number: int
    bytes: int
    key: str


class UploadUrls(ApiModel):
    """Paths of the upload."""

    self: str
    complete: str

    @classmethod
    def of(cls, upload_id: str) -> Self:
        """Return the paths of an upload."""
        base = f"/v1/uploads/{upload_id}"
        return cls(self=base, complete=f"{base}/complete")


class Upload(Resource):
    """An upload: `open` accepts parts, `ready` can be named in jobs, `refused` has an `error`."""

    object: Literal["upload"] = "upload"
    name: str | None = None
    kind: UploadKind
    state: UploadState
    bytes: int
    created_at: datetime
    expires_at: datetime | None
    """None: never."""
    error: UploadError | None
    urls: UploadUrls


class UploadRecord(Upload):
    """An upload with the fields that only the service sees; they are never serialised."""

    project_id: str = Field(exclude=True)
    files: tuple[UploadFile, ...] = Field(exclude=True)
    part_bytes: int = Field(exclude=True)
    store_prefix: str = Field(exclude=True)
    """Prefix of the upload's keys in the store; empty for uploads of earlier releases."""
    text_columns: TextColumns | None = Field(default=None, exclude=True)
    """Fields of a text with records; None if they were not read."""

    def parts(self, file: int) -> Iterator[Part]:
        """Yield the parts of one file in order; all but the last have `part_bytes` bytes."""
        size = self.files[file].bytes
        for number, start in enumerate(range(0, size, self.part_bytes)):
            yield Part(
                file=file,
                number=number,
                bytes=min(self.part_bytes, size - start),
                key=f"{upload_prefix(self)}{file}/{number:06d}",
            )

    def all_parts(self) -> Iterator[Part]:
        """Yield the parts of all files in order."""
        for file in range(len(self.files)):
            yield from self.parts(file)


class UploadPart(ApiModel):
    """A part of a file; PUT its bytes to `url`, unless it was received."""

    number: int
    bytes: int
    received: bool
    url: str | None


class UploadFileDetails(ApiModel):
    """A file and its parts, which are listed only while the upload is open."""

    name: str
    bytes: int
    sha256: str
    parts: tuple[UploadPart, ...]


class UploadDetails(Upload):
    """An upload with its files."""

    part_bytes: int
    files: tuple[UploadFileDetails, ...]


class UploadList(Page[Upload]):
    """One page of uploads, newest first."""


def upload_prefix(upload: UploadRecord) -> str:
    """Return the prefix of an upload's keys: its own store prefix, `uploads/`, its id."""
    return f"{upload.store_prefix}{UPLOADS_PREFIX}{upload.id}/"


def name_problems(request: UploadRequest) -> list[FieldProblem]:
    """Return the problems with the announced files' names."""
    problems = [
        FieldProblem(pointer=f"/files/{index}/name", code=code, message=message)
        for index, file in enumerate(request.files)
        for code, message in _file_name_problems(file.name, request.kind)
    ]
    names = [file.name for file in request.files]
    if len(set(names)) != len(names):
        problems.append(_files_problem("twice", "a name is there twice"))
    if request.kind is UploadKind.TEXT and len(names) != 1:
        problems.append(_files_problem("one_file", "a text is one file"))
    if request.kind is UploadKind.MODEL:
        if _CONFIG not in names:
            problems.append(_files_problem("config_missing", f"a model has a {_CONFIG}"))
        if not any(name.endswith(".safetensors") for name in names):
            problems.append(_files_problem("weights_missing", "a model has .safetensors files"))
    return problems


def is_model_file(name: str) -> bool:
    """Return whether the upload of a model may have a file of this name."""
    return not any(_file_name_problems(name, UploadKind.MODEL))


def _file_name_problems(name: str, kind: UploadKind) -> Iterator[tuple[str, str]]:
    if not _NAME.fullmatch(name):
        yield "malformed", "letters, digits, dots, dashes; no directories"
        return
    if kind is UploadKind.TEXT:
        if text_format(name) is None:
            yield "not_allowed", f"a text is one of {', '.join(TEXT_FILE_PATTERNS)}"
    elif not any(fnmatchcase(name, pattern) for pattern in _MODEL_FILES):
        yield "not_allowed", f"a {kind} consists of {', '.join(_MODEL_FILES)}; pickles can run code"


def _files_problem(code: str, message: str) -> FieldProblem:
    return FieldProblem(pointer="/files", code=code, message=message)
