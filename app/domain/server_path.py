"""Directories and files of the server that jobs may name, listed one level at a time."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.domain.resource import ApiModel

_DIRECTORY: dict[str, Any] = {
    "name": "llama-3b",
    "path": "/srv/models/llama-3b",
    "type": "directory",
    "contents": "model",
    "bytes": None,
}


class PathUse(StrEnum):
    """Use of a path in a job, which decides the roots: a model, or text."""

    MODEL = "model"
    DATA = "data"


class PathEntry(ApiModel):
    """A directory to list, or a model or text to name in a job."""

    model_config = ConfigDict(json_schema_extra={"examples": [_DIRECTORY]})

    name: str
    path: str = Field(description="Absolute path, as jobs name it.")
    type: Literal["directory", "file"]
    contents: Literal["model", "dataset"] | None = Field(
        description="What jobs can use it for; null for a directory that is no model."
    )
    bytes: int | None = Field(description="Size of a file; null for directories.")


class PathList(ApiModel):
    """One page of a directory in the order of names; without a path, all allowed directories."""

    path: str | None
    parent: str | None = Field(
        description="Directory above; null for an allowed directory and for their list."
    )
    data: tuple[PathEntry, ...]
    has_more: bool
    next_cursor: str | None
