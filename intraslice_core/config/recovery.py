"""Settings of recovery fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from intraslice_core.config.base import FrozenModel
from intraslice_core.config.calibration import (
    MAX_SEQUENCES,
    CalibrationConfig,
    SourceOrMixture,
    TextField,
    WeightedSource,
)

RecoveryLoss = Literal["ce", "distill"]
"""Fine-tuning loss: cross-entropy of the text, or KL divergence from the dense model."""

HELD_OUT_SEQUENCES = 16
"""Sequences of the fine-tuning text that are not trained on; recovery is measured on them."""


class RecoveryConfig(FrozenModel):
    """Recovery fine-tuning: LoRA adapters, merged into the weights at the end.

    Training ends at `max_tokens` or after `max_seconds`, whichever comes first. A run bounded by
    tokens alone is bitwise reproducible on one kind of machine; a run bounded by time is not.
    """

    loss: RecoveryLoss = Field(
        default="distill",
        description="Fine-tuning loss. distill: KL divergence from the dense model's outputs, "
        "which also needs the dense model in memory. ce: cross-entropy of the next token.",
    )
    max_tokens: int = Field(
        default=262_144,
        ge=16,
        le=10_000_000_000,
        description="Largest number of tokens to train on.",
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0.0,
        le=31 * 86_400.0,
        description="Time limit of the training in seconds; null sets no time limit.",
    )
    rank: int = Field(default=32, ge=1, le=1024, description="Rank of each LoRA adapter.")
    alpha: float = Field(
        default=64.0,
        gt=0.0,
        le=65_536.0,
        description="LoRA scale: adapters are multiplied by alpha / rank.",
    )
    learning_rate: float = Field(
        default=1e-3,
        gt=0.0,
        le=1.0,
        description="Peak learning rate; it is reached by a warm-up and followed by cosine decay.",
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="Sequences per training step.")
    sequence_length: int = Field(
        default=512,
        ge=16,
        le=131_072,
        validate_default=True,
        description="Tokens per training sequence.",
    )
    temperature: float = Field(
        default=1.0,
        ge=0.05,
        le=100.0,
        description="Softmax temperature of both models for the loss distill.",
    )
    seed: int = Field(
        default=1,
        ge=0,
        lt=2**31,
        description="Random seed for the training text and the adapters.",
    )
    source: SourceOrMixture | None = Field(
        default=None,
        description="Training text, named like calibration sources; null uses the calibration's "
        "sources.",
    )
    text_field: TextField = Field(
        default=None,
        description="Field of the records of `source` that holds the text or the messages; null "
        "looks for the known ones. Without `source`, the calibration's field is used.",
    )

    @field_validator("sequence_length")
    @classmethod
    def _require_whole_sequences(cls, length: int, info: ValidationInfo) -> int:
        tokens = info.data.get("max_tokens")
        if tokens is None:
            return length
        sequences = tokens // length
        most = MAX_SEQUENCES - HELD_OUT_SEQUENCES
        if not 1 <= sequences <= most:
            raise ValueError(
                f"max_tokens {tokens} gives {sequences} sequences of {length} tokens; change "
                f"max_tokens or sequence_length to get between 1 and {most}"
            )
        return length

    @property
    def sequences(self) -> int:
        """Largest number of sequences to train on."""
        return self.max_tokens // self.sequence_length

    def mixture(self, calibration: CalibrationConfig) -> tuple[WeightedSource, ...]:
        """Return the training sources: `source`, or else the calibration's sources."""
        if self.source is None:
            return calibration.sources
        return self.text(calibration).mixture

    def text(self, calibration: CalibrationConfig) -> CalibrationConfig:
        """Describe the training sequences, followed by `HELD_OUT_SEQUENCES` for measurement.

        Raises:
            ValidationError: if a source gets no sequence.
        """
        return CalibrationConfig(
            source=calibration.source if self.source is None else self.source,
            samples=self.sequences + HELD_OUT_SEQUENCES,
            sequence_length=self.sequence_length,
            seed=self.seed,
            text_field=self.text_field or (calibration.text_field if self.source is None else None),
        )
