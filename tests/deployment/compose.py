"""Reader of docker-compose.yml that substitutes variables and resolves merges, as Compose does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
OPTIONAL = {
    "INTRASLICE_API_KEY_PREVIOUS",
    "INTRASLICE_SIGNING_KEY_PREVIOUS",
    "INTRASLICE_OTEL_ENDPOINT",
}
"""Variables that may stay empty."""
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class MissingVariableError(Exception):
    """A required variable is not set."""


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the file with the environment's values substituted.

    Raises:
        MissingVariableError: if a required variable is unset or empty.
    """
    text = (REPOSITORY / "docker-compose.yml").read_text()
    # Substituted after parsing, as in Compose, so that values cannot change the structure.
    loaded: dict[str, Any] = _interpolated(yaml.safe_load(text), environment)
    return loaded


def example_environment() -> dict[str, str]:
    """Return the variables of `.env.example`, whose secrets are empty."""
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def filled_environment() -> dict[str, str]:
    """Return the same variables with every required one filled in."""
    return {
        name: value or ("" if name in OPTIONAL else f"secret0of0{name.replace('_', '0')}")
        for name, value in example_environment().items()
    }


def _interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, environment) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _value(match, environment), value)
    return value


def _value(match: re.Match[str], environment: Mapping[str, str]) -> str:
    name, kind, rest = match.groups()
    value = environment.get(name, "")
    if kind == "?" and not value:
        raise MissingVariableError(name)
    return value or (rest if kind == "-" else "")
