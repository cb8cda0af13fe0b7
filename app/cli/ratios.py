"""Ratios as people write them: 0.1:0.5:0.1, or 0.1,0.25,0.4."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from intraslice_core.errors import ConfigurationError

MOST_RATIOS = 50
_FORM = "write START:STOP:STEP, as 0.1:0.5:0.1, or a list, as 0.1,0.25,0.4"


def ratios(text: str, option: str) -> tuple[float, ...]:
    """The ratios that are meant, in their order; `option` is blamed for what is none.

    Counted in decimals, so that 0.1:0.3:0.1 ends with 0.3 and not a rounding error before or
    behind it.

    Raises:
        ConfigurationError: naming the option and what to write.
    """
    parts = text.split(":")
    if len(parts) == 3:
        start, stop, step = (_number(part, text, option) for part in parts)
        found = _range(start, stop, step, option)
    elif len(parts) == 1:
        found = [_number(part, text, option) for part in text.split(",")]
    else:
        raise ConfigurationError(f"{text!r} is no range of ratios", field=option, hint=_FORM)
    for ratio in found:
        if not 0 <= ratio < 1:
            raise ConfigurationError(
                f"a ratio of {ratio} is impossible", field=option, hint="give 0 or more, below 1"
            )
    values = tuple(map(float, found))
    if len(set(values)) < len(values):
        raise ConfigurationError(
            f"{text!r} names a ratio twice", field=option, hint="name each once"
        )
    if len(values) > MOST_RATIOS:
        raise ConfigurationError(
            f"{len(values)} ratios are more than {MOST_RATIOS}",
            field=option,
            hint="take a larger step",
        )
    return values


def _number(text: str, whole: str, option: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ConfigurationError(f"{text!r} in {whole!r} is no number", field=option, hint=_FORM)
    return number


def _range(start: Decimal, stop: Decimal, step: Decimal, option: str) -> list[Decimal]:
    """From `start` to `stop`, which is one of them."""
    if step <= 0 or stop < start:
        raise ConfigurationError(
            f"{start}:{stop}:{step} goes nowhere",
            field=option,
            hint="start with the smallest ratio, and step upwards",
        )
    steps = (stop - start) / step
    if steps != int(steps):
        below = start + int(steps) * step
        raise ConfigurationError(
            f"steps of {step} from {start} do not meet {stop}",
            field=option,
            hint=f"stop at {below} or at {below + step}",
        )
    if steps >= MOST_RATIOS:
        raise ConfigurationError(
            f"{int(steps) + 1} ratios are more than {MOST_RATIOS}",
            field=option,
            hint="take a larger step",
        )
    return [start + number * step for number in range(int(steps) + 1)]
