"""Who asks: a key's holder, in one project (tenant), with the scopes of that key."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_PROJECT = "default"


class Scope(StrEnum):
    """What a key allows; each includes the one before."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Sees and changes what belongs to `project_id`, and nothing else."""

    project_id: str
    scopes: frozenset[Scope]
    key_id: str | None = None
    """None for the deployment's own key and where authentication is off."""


OPERATOR = Principal(project_id=DEFAULT_PROJECT, scopes=frozenset(Scope))
"""Whoever runs the deployment: holds `INTRASLICE_API_KEY`, or is alone on this machine."""
