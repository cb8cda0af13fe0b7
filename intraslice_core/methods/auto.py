"""Methods that `auto` may choose: all whose options suit the settings, the model and the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from intraslice_core.config import METHOD_DESCRIPTIONS, CompressionConfig, Method
from intraslice_core.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class PossibleMethods:
    """Methods that pass a check, with their settings, and the errors of those that do not."""

    settings: Mapping[Method, CompressionConfig]
    errors: Mapping[Method, ConfigurationError]


def possible_methods(
    config: CompressionConfig, check: Callable[[CompressionConfig], object]
) -> PossibleMethods:
    """Return the methods that can compress as requested, in the order of the registry.

    Args:
        config: settings with method `auto`.
        check: raises a ConfigurationError for settings of a method that are not possible.

    Raises:
        ConfigurationError: that of the default method, if no method is possible.
    """
    settings: dict[Method, CompressionConfig] = {}
    errors: dict[Method, ConfigurationError] = {}
    for method in METHOD_DESCRIPTIONS:
        fixed = config.model_copy(update={"method": method})
        try:
            check(fixed)
        except ConfigurationError as error:
            errors[method] = error
        else:
            settings[method] = fixed
    if not settings:
        raise next(iter(errors.values()))
    return PossibleMethods(settings=settings, errors=errors)
