"""Settings as the environment of a process."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import SecretStr

from app.settings import Settings


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the `INTRASLICE_*` variables from which a process reads these settings."""
    values = settings.model_dump(exclude_none=True)
    plain = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in values.items()
    }
    return {f"INTRASLICE_{name.upper()}": _written(value) for name, value in plain.items()}


def _written(value: object) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, default=str)
