"""Ranges of durations are written as people say them."""

from __future__ import annotations

import pytest

from intraslice_core.reports.quantities import duration_range


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.2, 8.0, "a few seconds"),
        (4.0, 22.0, "4 to 20 seconds"),
        (24.0, 170.0, "20 seconds to 3 minutes"),
        (58.0, 61.0, "about 1 minute"),
        (50.0, 61.0, "50 seconds to 1 minute"),
        (732.0, 1180.0, "12 to 20 minutes"),
        (3000.0, 9000.0, "50 minutes to 2.5 hours"),
        (36_000.0, 45_000.0, "10 to 12 hours"),
        (86_400.0, 200_000.0, "24 hours to 2.3 days"),
    ],
)
def test_a_range_has_one_unit_or_two(low: float, high: float, text: str) -> None:
    assert duration_range(low, high) == text
