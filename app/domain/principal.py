"""Principals: the holder of a key, its project (tenant) and its scopes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_PROJECT = "default"
PROJECT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class Scope(StrEnum):
    """Permissions of a key; each scope includes the one before."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


def included(scope: Scope) -> frozenset[Scope]:
    """Return the scope and those before it."""
    order = list(Scope)
    return frozenset(order[: order.index(scope) + 1])


@dataclass(frozen=True, kw_only=True)
class Principal:
    """A caller with access to the objects of `project_id` and to no others."""

    project_id: str
    scopes: frozenset[Scope]
    key_id: str | None = None
    """None for the operator's key and where authentication is off."""

    @property
    def is_operator(self) -> bool:
        """Return True for the operator, who alone creates keys for any project."""
        return self.key_id is None and Scope.ADMIN in self.scopes


OPERATOR = Principal(project_id=DEFAULT_PROJECT, scopes=frozenset(Scope))
"""The holder of `INTRASLICE_API_KEY`, and every caller where authentication is off."""
