"""Options that many commands share, given to a command as one argument.

A decorator adds a group's options to a command's own, in typer's terms, and collects what was said.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Command = Callable[..., None]
Options = Mapping[str, tuple[Any, Any]]
"""Annotation and default, by parameter."""
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def with_options(
    argument: str, options: Options, collect: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """A decorator that puts a group of options in the place of an argument.

    Args:
        argument: of the command, by keyword.
        options: added behind the command's own.
        collect: makes the argument from what was said, by parameter.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(**values: Any) -> None:
            said = {name: values.pop(name) for name in options}
            command(**values, **{argument: collect(said)})

        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [one for one in own if one.name != argument] + [
            inspect.Parameter(name, _KEYWORD, default=default, annotation=kind)
            for name, (kind, default) in options.items()
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called

    return decorate
