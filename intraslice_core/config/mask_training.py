"""Settings of the training of masks, by which some methods choose what stays."""

from __future__ import annotations

from pydantic import Field

from intraslice_core.config.base import FrozenModel
from intraslice_core.config.training_limits import TrainingSeconds, TrainingTokens


class MaskTrainingConfig(FrozenModel):
    """Training of masks on the calibration text, with the weights as they are.

    A step takes one calibration sequence; they are used in turn, repeatedly if need be. Training
    ends at `max_tokens` or after `max_seconds`, whichever comes first. A run bounded by tokens
    alone is reproducible on one kind of CPU; a run bounded by time is not.
    """

    max_tokens: TrainingTokens = Field(
        default=1_048_576,
        description="Largest number of tokens to train on; at least one sequence is used.",
    )
    max_seconds: TrainingSeconds = None
    learning_rate: float = Field(
        default=1e-3, gt=0.0, le=1.0, description="Learning rate of AdamW for the masks."
    )

    def scaled(self, share: float) -> MaskTrainingConfig:
        """Return the training on a share of the tokens and of the seconds, in (0, 1]."""
        seconds = None if self.max_seconds is None else share * self.max_seconds
        tokens = max(round(share * self.max_tokens), 16)
        return self.model_copy(update={"max_tokens": tokens, "max_seconds": seconds})
