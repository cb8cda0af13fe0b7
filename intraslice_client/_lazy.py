"""Names of a module that are imported from other modules at their first use (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(module: str, names_by_module: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module that imports its names at their first use.

    Args:
        module: `__name__` of the module.
        names_by_module: names that the module has, by the module that defines them.
    """
    origins = {name: origin for origin, names in names_by_module.items() for name in names}

    def import_name(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(origins[name]), name)
        setattr(sys.modules[module], name, value)
        return value

    return import_name
