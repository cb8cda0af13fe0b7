"""Groups of options that several commands share and receive as one argument.

A decorator adds the group's options to the command's own options and collects their values.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Command = Callable[..., None]
Options = Mapping[str, tuple[Any, Any]]
"""Annotation and default of each option, by parameter name."""
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def with_options(
    argument: str, options: Options, collect: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Return a decorator that replaces an argument of a command by a group of options.

    Args:
        argument: name of the command's keyword argument.
        options: options that follow the command's own.
        collect: builds the argument from the values of the options, by parameter name.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            group = {name: values.pop(name) for name in options}
            command(**values, **{argument: collect(group)})

        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [parameter for parameter in own if parameter.name != argument] + [
            inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)
            for name, (annotation, default) in options.items()
        ]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate
