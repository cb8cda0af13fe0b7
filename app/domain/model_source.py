"""Source of the model that a job compresses."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from intraslice_core.config import FrozenModel

SourceKind = Literal["hub", "path", "package", "upload"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[\w-][\w./-]*", re.ASCII)


class ModelSource(FrozenModel):
    """A model: `ref` is `org/name` on the hub, a path on workers, a Python package, an upload."""

    source: SourceKind
    ref: str = Field(min_length=1, max_length=1024)
    revision: str | None = Field(default=None, min_length=1, max_length=200)


def is_hub_name(name: str) -> bool:
    """Return whether the name is `org/name` and cannot be read as a path outside the hub."""
    return _HUB_NAME.fullmatch(name) is not None and ".." not in name


def is_revision(revision: str) -> bool:
    return _REVISION.fullmatch(revision) is not None and ".." not in revision


def is_allowed(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
