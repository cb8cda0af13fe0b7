"""Limits that every training has: tokens and seconds, whichever comes first."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

TrainingTokens = Annotated[int, Field(ge=16, le=10_000_000_000)]
"""Largest number of tokens to train on."""
TrainingSeconds = Annotated[
    Annotated[float, Field(gt=0.0, le=31 * 86_400.0)] | None,
    Field(description="Time limit of the training in seconds; null sets no time limit."),
]
"""Time limit in seconds; None sets none."""
