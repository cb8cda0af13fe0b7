"""Report of a tournament: the methods that `auto` tried, and why one of them won."""

from __future__ import annotations

from pydantic import Field

from intraslice_core.config import FrozenModel, Method


class TournamentCandidate(FrozenModel):
    """A method of the tournament with the divergence of its trial, or why it has none."""

    method: Method
    kl: float | None = Field(
        default=None,
        description="Divergence KL(dense ‖ compressed) of the trial on held-out text: the mean "
        "over the kinds of text plus half of the worst, in nats per token. null: not measured.",
    )
    kl_by_text: dict[str, float] = Field(
        default_factory=dict,
        description="Mean divergence by kind of text: `text` is the calibration's own text, held "
        "out; `self` and `chat` are written by the dense model.",
    )
    standard_error: float | None = Field(
        default=None,
        description="Standard error of the paired difference of `kl` from the winner's; null for "
        "the winner and without a measurement.",
    )
    seconds: float | None = Field(
        default=None, description="Duration of the trial and its measurement in seconds."
    )
    reason: str | None = Field(
        default=None, description="Reason why the method was not measured; null if it was."
    )


class TournamentReport(FrozenModel):
    """Choice of the method by trials with little calibration text."""

    winner: Method
    reason: str = Field(description="Reason for the choice, as a sentence.")
    candidates: tuple[TournamentCandidate, ...] = Field(
        description="All methods: those that were measured by ascending divergence, then others."
    )
    calibration_tokens: int = Field(description="Calibration tokens of each trial.")
    held_out_tokens: dict[str, int] = Field(
        default_factory=dict, description="Held-out tokens by kind of text."
    )
    seconds: float = Field(
        description="Duration of the tournament in seconds, over all attempts; at most that of the "
        "winner's own run is intended."
    )
