"""Fixtures of the tests of methods."""

from __future__ import annotations

from typing import Any

import pytest

from intraslice_core import pipeline
from intraslice_core.allocation.context import Shapes


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Shapes]:
    """Shapes that compressions have chosen."""
    shapes: list[Shapes] = []
    choose = pipeline.choose_shapes

    def recording(*arguments: Any) -> Shapes:
        shapes.append(choose(*arguments))
        return shapes[-1]

    monkeypatch.setattr(pipeline, "choose_shapes", recording)
    return shapes
