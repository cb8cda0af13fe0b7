"""Sizes are parsed with decimal units."""

from __future__ import annotations

import pytest

from app.cli.quantities import quantity
from intraslice_core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("123", 123),
        ("100M", 100_000_000),
        ("1.2G", 1_200_000_000),
        (" 0.5k ", 500),
        ("7t", 7 * 10**12),
        ("1.000000000001T", 1_000_000_000_001),
    ],
)
def test_suffixes_are_powers_of_a_thousand(text: str, meant: int) -> None:
    assert quantity(text, "--target-bytes") == meant


@pytest.mark.parametrize("text", ["", "M", "-1M", "1,5G", "1e9", "1.2.3", "100MB", "٣M"])
def test_other_forms_are_rejected_with_the_option_and_the_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--target-bytes: .* or 1\.2G"):
        quantity(text, "--target-bytes")


def test_none_stays_none() -> None:
    assert quantity(None, "--target-bytes") is None
