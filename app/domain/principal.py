"""Who asks: a key's holder, in one project (tenant), with the scopes of that key."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_PROJECT = "default"
PROJECT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class Scope(StrEnum):
    """What a key allows; each includes the one before."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


def included(scope: Scope) -> frozenset[Scope]:
    """The scope and those before it."""
    order = list(Scope)
    return frozenset(order[: order.index(scope) + 1])


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Sees and changes what belongs to `project_id`, and nothing else."""

    project_id: str
    scopes: frozenset[Scope]
    key_id: str | None = None
    """None for the deployment's own key and where authentication is off."""

    @property
    def is_operator(self) -> bool:
        """Whether this is who runs the deployment: alone may make keys for any project."""
        return self.key_id is None and Scope.ADMIN in self.scopes


OPERATOR = Principal(project_id=DEFAULT_PROJECT, scopes=frozenset(Scope))
"""Whoever runs the deployment: holds `INTRASLICE_API_KEY`, or is alone on this machine."""
