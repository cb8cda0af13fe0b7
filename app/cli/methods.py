"""Compression methods as a list: flap,2ssp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from app.cli.options import listed
from intraslice_core.config import (
    FORMER_METHOD,
    METHOD_CHOICES,
    RENAMED_METHOD_ERROR,
    MethodChoice,
)
from intraslice_core.errors import ConfigurationError

METHOD_NAMES = ", ".join(METHOD_CHOICES)


def methods(options: Sequence[str] | None, option: str) -> tuple[MethodChoice, ...]:
    """Parse the names of methods, in the given order.

    Raises:
        ConfigurationError: naming `option` and the methods.
    """
    names = listed(list(options or ()))
    for name in names:
        if name == FORMER_METHOD:
            raise ConfigurationError(RENAMED_METHOD_ERROR, field=option)
        if name not in METHOD_CHOICES:
            hint = f"name some of {METHOD_NAMES}"
            raise ConfigurationError(f"{name!r} is not a method", field=option, hint=hint)
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"{','.join(names)!r} contains a method twice",
            field=option,
            hint="write each method once",
        )
    return tuple(cast(MethodChoice, name) for name in names)
