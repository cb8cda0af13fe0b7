"""Advice about the environment of a process: unknown variables and missing directories."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping

from pydantic import AliasChoices
from pydantic_core import ErrorDetails

from app.settings import PREFIX, Settings
from app.telemetry import get_logger

_log = get_logger(__name__)
_READ_ELSEWHERE = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("URL", "PROFILE", "CONFIG", "WEBHOOK_SECRET"),
        *("BENCHMARK_DATA", "BENCHMARK_MODELS"),
    )
)
"""Variables of the command line, the examples and the benchmarks."""


def advice(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Return one line for each likely mistake that does not prevent the start."""
    return [*_unknown(environment), *_missing_directories(settings)]


def log_advice(settings: Settings) -> None:
    """Log one warning for each likely mistake in this process's environment."""
    for line in advice(settings, os.environ):
        _log.warning("environment", advice=line)


def described(problem: ErrorDetails) -> str:
    """Return an invalid setting in one line: the variable, its value unless secret, the reason."""
    message = problem["msg"].removeprefix("Value error, ")
    parts = [str(part) for part in problem["loc"] if isinstance(part, str)]
    if not parts:
        return message
    name = parts[0].upper()
    name = name if name.startswith(PREFIX) or "OTEL" in name else PREFIX + name
    value = problem["input"]
    is_secret = _is_secret(name) or "://" in str(value)
    if str(value).startswith("tcp://"):
        message += (
            "; Kubernetes sets this variable for a service of the name `intraslice`:"
            " set enableServiceLinks to false"
        )
    return f"{name}: {message}" if is_secret else f"{name}={value}: {message}"


def _is_secret(variable: str) -> bool:
    """Return True if the value is never quoted, as keys and URLs with passwords are not."""
    name = variable.removeprefix(PREFIX).lower()
    field = Settings.model_fields.get(name)
    return name.endswith(("_url", "_uri")) or "SecretStr" in str(field and field.annotation)


def known_variables() -> set[str]:
    """Return all `INTRASLICE_*` variables that a part of the project reads."""
    names = set(_READ_ELSEWHERE)
    for field, info in Settings.model_fields.items():
        alias = info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [PREFIX + field.upper()]
        names |= {str(choice) for choice in choices}
    return names


def _unknown(environment: Mapping[str, str]) -> Iterable[str]:
    variables = known_variables()
    for name in sorted(environment):
        if name.upper() in variables or not name.upper().startswith(PREFIX):
            continue
        if _is_service_link(name, environment):
            continue
        similar = difflib.get_close_matches(name.upper(), variables, n=1, cutoff=0.8)
        question = f"; did you mean {similar[0]}?" if similar else ""
        yield f"{name} is not a setting{question}"


def _is_service_link(name: str, environment: Mapping[str, str]) -> bool:
    """Return True if Kubernetes describes a service of the namespace by this variable."""
    service = re.match(r"(.+?)_(SERVICE|PORT)(_|$)", name)
    return service is not None and f"{service[1]}_SERVICE_HOST" in environment


def _missing_directories(settings: Settings) -> Iterable[str]:
    roots = {"MODEL_ROOTS": settings.model_roots, "DATA_ROOTS": settings.data_roots}
    for name, directories in roots.items():
        for directory in directories:
            if not directory.is_dir():
                hint = "; separate directories by colons" if "," in str(directory) else ""
                yield (
                    f"{PREFIX}{name}: {directory} is not a directory on this machine: jobs that"
                    f" name files below it fail until it exists{hint}"
                )
