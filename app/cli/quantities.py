"""Numbers with a decimal unit: 100M, 1.2G."""

from __future__ import annotations

import re
from decimal import Decimal

from intraslice_core.errors import ConfigurationError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,12})?)([KMGT]?)", re.IGNORECASE)


def quantity(text: str | None, option: str) -> int | None:
    """Parse a number with an optional unit (K, M, G or T, powers of 1000); None stays None.

    Raises:
        ConfigurationError: naming `option` and the expected form.
    """
    if text is None:
        return None
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(
            f"{text!r} is not a number", field=option, hint="write a number such as 100M or 1.2G"
        )
    return int(Decimal(match[1]) * _UNITS[match[2].upper()])
