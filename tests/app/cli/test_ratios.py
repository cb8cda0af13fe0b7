"""Ratios are computed in decimals, and errors name the option and the expected form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.ratios import ratios
from intraslice_core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1:0.5:0.1", (0.1, 0.2, 0.3, 0.4, 0.5)),
        ("0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("0:0.9:0.45", (0.0, 0.45, 0.9)),
        ("0.3:0.3:0.1", (0.3,)),
        ("0.4, 0.1,.25", (0.4, 0.1, 0.25)),
        ("0.3", (0.3,)),
    ],
)
def test_ranges_and_lists(text: str, expected: tuple[float, ...]) -> None:
    assert ratios(text, "--ratios") == expected


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 20))
def test_a_range_ends_with_its_stop(start: int, step: int, count: int) -> None:
    stop = start + count * step
    values = ratios(f"{start / 1000}:{stop / 1000}:{step / 1000}", "--ratios")
    assert values == tuple((start + number * step) / 1000 for number in range(count + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1:0.5", "is not a range of ratios"),
        ("0.1:0.5:0.1:2", "is not a range of ratios"),
        ("", "is not a number"),
        ("0.1,,0.2", "is not a number"),
        ("0.1,nan", "is not a number"),
        ("0.1:inf:0.1", "is not a number"),
        ("a:b:c", "is not a number"),
        ("0.5:0.1:0.1", "contains no ratio"),
        ("0.1:0.5:0", "contains no ratio"),
        ("0.1:0.45:0.1", r"do not reach 0.45 exactly \(stop at 0.4 or 0.5\)"),
        ("0.5:1.5:0.5", "ratio 1.0 is out of range"),
        ("-0.1", "ratio -0.1 is out of range"),
        ("0.1,0.10", "contains a ratio twice"),
        ("0:0.9:0.00000001", "too many .*at most 50"),
        (",".join(f"0.{number}1" for number in range(1, 53)), "too many .*at most 50"),
    ],
)
def test_an_invalid_value_is_rejected_with_the_name_of_the_option(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        ratios(text, "--ratios")
    assert caught.value.field == "--ratios"
    assert caught.value.hint
