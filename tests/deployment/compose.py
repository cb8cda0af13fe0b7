"""docker-compose.yml as Compose reads it: variables put in, merges resolved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class MissingVariableError(Exception):
    """A variable that must be set is not."""


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """The file with the environment's values in it.

    Raises:
        MissingVariableError: if one that is demanded is unset or empty.
    """
    text = (REPOSITORY / "docker-compose.yml").read_text()
    # Values are put in after parsing, as Compose does: they cannot change the structure.
    loaded: dict[str, Any] = _interpolated(yaml.safe_load(text), environment)
    return loaded


def example_environment() -> dict[str, str]:
    """`.env.example` as it is: without secrets."""
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def filled_environment() -> dict[str, str]:
    """The same with every empty line filled in, the optional one aside."""
    optional = {"INTRASLICE_OTEL_ENDPOINT"}
    return {
        name: value or ("" if name in optional else f"secret0of0{name.replace('_', '0')}")
        for name, value in example_environment().items()
    }


def _interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, environment) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: _value(found, environment), value)
    return value


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    name, kind, rest = found.groups()
    value = environment.get(name, "")
    if kind == "?" and not value:
        raise MissingVariableError(name)
    return value or (rest if kind == "-" else "")
