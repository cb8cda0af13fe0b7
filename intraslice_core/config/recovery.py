"""Settings of recovery fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from intraslice_core.config.base import FrozenModel
from intraslice_core.config.calibration import (
    CalibrationConfig,
    SourceOrMixture,
    TextField,
    WeightedSource,
)
from intraslice_core.config.training_limits import TrainingSeconds, TrainingTokens

RecoveryLoss = Literal["ce", "distill", "hidden"]
"""Fine-tuning loss: cross-entropy of the text, KL divergence from the dense model, or the distance
of the hidden states from the dense model's."""

Adapter = Literal["none", "lora", "dora"]
"""Trained parameters: all weights, or low-rank adapters that are merged at the end."""

Schedule = Literal["cosine", "linear", "constant"]
"""Course of the learning rate after the warm-up."""

_DEFAULT_LEARNING_RATES: dict[Adapter, float] = {"none": 1e-4, "lora": 1e-3, "dora": 1e-3}

HELD_OUT_SEQUENCES = 16
"""Sequences of the fine-tuning text that are not trained on; recovery is measured on them."""


class AuxiliaryLosses(FrozenModel):
    """Weights of losses that are added to the main loss, whose weight is 1; 0 leaves a loss out."""

    ce: float = Field(default=0.0, ge=0.0, le=1e6, description="Weight of the cross-entropy.")
    distill: float = Field(default=0.0, ge=0.0, le=1e6, description="Weight of the KL divergence.")
    hidden: float = Field(
        default=0.0, ge=0.0, le=1e6, description="Weight of the hidden states' error."
    )


class TrainingTextConfig(CalibrationConfig):
    """Fine-tuning text, described like a calibration text but of any length."""

    samples: int = Field(
        default=128,
        ge=1,
        validate_default=True,
        description="Number of sequences, over all sources.",
    )


class RecoveryConfig(FrozenModel):
    """Recovery fine-tuning of low-rank adapters, merged at the end, or of all weights.

    One step takes `batch_size` times `gradient_accumulation` sequences on every process. Training
    ends at `max_tokens` or after `max_seconds`, whichever comes first. A run bounded by tokens
    alone is bitwise reproducible on one kind of CPU; a run bounded by time is not.
    """

    loss: RecoveryLoss = Field(
        default="distill",
        description="Fine-tuning loss. distill: KL divergence from the dense model's outputs, "
        "which also needs the dense model in memory. ce: cross-entropy of the next token. hidden: "
        "relative squared error of the hidden states after every layer, which needs it, too.",
    )
    auxiliary: AuxiliaryLosses = Field(
        default=AuxiliaryLosses(),
        description="Weights of losses that are added to `loss`, whose weight is 1.",
    )
    adapter: Adapter = Field(
        default="lora",
        description="Trained parameters. lora, dora: low-rank adapters of all linear layers but "
        "the output head, merged at the end. none: all weights, trained in float32.",
    )
    max_tokens: TrainingTokens = Field(
        default=262_144,
        description="Largest number of tokens to train on.",
    )
    max_seconds: TrainingSeconds = None
    rank: int = Field(default=32, ge=1, le=1024, description="Rank of each adapter.")
    alpha: float = Field(
        default=64.0,
        gt=0.0,
        le=65_536.0,
        description="Scale of the adapters: they are multiplied by alpha / rank.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        examples=[1e-3],
        description="Peak learning rate of AdamW; null is 1e-3 for adapters and 1e-4 for all "
        "weights.",
    )
    warm_up: float = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="Fraction of the training in which the learning rate rises to its peak.",
    )
    schedule: Schedule = Field(
        default="cosine",
        description="Course of the learning rate after the warm-up: cosine or linear down to "
        "zero, or constant.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Weight decay of AdamW, times the learning rate."
    )
    batch_size: int = Field(
        default=8, ge=1, le=4096, description="Sequences per forward pass of each process."
    )
    gradient_accumulation: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Forward passes of each process whose gradients are summed for one step.",
    )
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
        if tokens is not None and tokens < length:
            raise ValueError(
                f"max_tokens {tokens} is less than one sequence of {length} tokens; increase "
                "max_tokens or reduce sequence_length"
            )
        return length

    @field_validator("auxiliary")
    @classmethod
    def _reject_a_second_weight_of_the_loss(
        cls, auxiliary: AuxiliaryLosses, info: ValidationInfo
    ) -> AuxiliaryLosses:
        loss = info.data.get("loss")
        if loss is not None and getattr(auxiliary, loss) > 0.0:
            raise ValueError(
                f"auxiliary.{loss} repeats the loss {loss!r}, whose weight is 1; leave it out, or "
                "weight the other losses relative to it"
            )
        return auxiliary

    @property
    def loss_weights(self) -> AuxiliaryLosses:
        """Weights of all losses; that of `loss` is 1."""
        return self.auxiliary.model_copy(update={self.loss: 1.0})

    @property
    def needs_teacher(self) -> bool:
        """True if a loss compares with the dense model."""
        return self.loss_weights.distill > 0.0 or self.loss_weights.hidden > 0.0

    @property
    def needs_logits(self) -> bool:
        """True if a loss depends on the output head."""
        return self.loss_weights.ce > 0.0 or self.loss_weights.distill > 0.0

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the default of the trained parameters."""
        return self.learning_rate or _DEFAULT_LEARNING_RATES[self.adapter]

    @property
    def sequences(self) -> int:
        """Largest number of sequences to train on."""
        return self.max_tokens // self.sequence_length

    def mixture(self, calibration: CalibrationConfig) -> tuple[WeightedSource, ...]:
        """Return the training sources: `source`, or else the calibration's sources."""
        if self.source is None:
            return calibration.sources
        return self.text(calibration).mixture

    def text(self, calibration: CalibrationConfig) -> TrainingTextConfig:
        """Describe the training sequences, followed by `HELD_OUT_SEQUENCES` for measurement.

        Raises:
            ValidationError: if a source gets no sequence.
        """
        return TrainingTextConfig(
            source=calibration.source if self.source is None else self.source,
            samples=self.sequences + HELD_OUT_SEQUENCES,
            sequence_length=self.sequence_length,
            seed=self.seed,
            text_field=self.text_field or (calibration.text_field if self.source is None else None),
        )
