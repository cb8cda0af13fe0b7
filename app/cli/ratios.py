"""Compression ratios as a range or a list: 0.1:0.5:0.1 or 0.1,0.25,0.4."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from intraslice_core.errors import ConfigurationError

MAX_RATIOS = 50
_FORM = "write START:STOP:STEP such as 0.1:0.5:0.1, or a list such as 0.1,0.25,0.4"


def ratios(text: str, option: str) -> tuple[float, ...]:
    """Parse the ratios, in the given order.

    Ranges are computed in decimals, so that 0.1:0.3:0.1 ends with exactly 0.3.

    Raises:
        ConfigurationError: naming `option` and the expected form.
    """
    parts = text.split(":")
    if len(parts) == 3:
        start, stop, step = (_number(part, text, option) for part in parts)
        numbers = _range(start, stop, step, option)
    elif len(parts) == 1:
        numbers = [_number(part, text, option) for part in text.split(",")]
    else:
        raise ConfigurationError(f"{text!r} is not a range of ratios", field=option, hint=_FORM)
    _require_valid(numbers, text, option)
    return tuple(map(float, numbers))


def _require_valid(numbers: list[Decimal], text: str, option: str) -> None:
    """Raise if a ratio is out of range or repeated, or if there are too many.

    Raises:
        ConfigurationError: naming `option`.
    """
    for ratio in numbers:
        if not 0 <= ratio < 1:
            raise ConfigurationError(
                f"ratio {ratio} is out of range", field=option, hint="write 0 or more, below 1"
            )
    if len(set(map(float, numbers))) < len(numbers):
        raise ConfigurationError(
            f"{text!r} contains a ratio twice", field=option, hint="write each ratio once"
        )
    if len(numbers) > MAX_RATIOS:
        raise ConfigurationError(
            f"{len(numbers)} ratios are too many",
            field=option,
            hint=f"write at most {MAX_RATIOS}",
        )


def _number(text: str, whole: str, option: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ConfigurationError(f"{text!r} in {whole!r} is not a number", field=option, hint=_FORM)
    return number


def _range(start: Decimal, stop: Decimal, step: Decimal, option: str) -> list[Decimal]:
    """Return the ratios from `start` to `stop`, both included."""
    if step <= 0 or stop < start:
        raise ConfigurationError(
            f"{start}:{stop}:{step} contains no ratio",
            field=option,
            hint="start with the smallest ratio and use a positive step",
        )
    steps = (stop - start) / step
    if steps != int(steps):
        below = start + int(steps) * step
        raise ConfigurationError(
            f"steps of {step} from {start} do not reach {stop} exactly",
            field=option,
            hint=f"stop at {below} or {below + step}",
        )
    if steps >= MAX_RATIOS:
        raise ConfigurationError(
            f"{int(steps) + 1} ratios are too many",
            field=option,
            hint=f"use a larger step; at most {MAX_RATIOS} are allowed",
        )
    return [start + number * step for number in range(int(steps) + 1)]
