"""Evaluation settings: perplexity texts, tasks, speed, sample outputs and the quality gate."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import (
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from intraslice_core.config.base import FrozenModel
from intraslice_core.config.calibration import TextField


class GateConfig(FrozenModel):
    """Quality limits a result must meet to be published; set at least one of them."""

    max_perplexity_ratio: float | None = Field(
        default=None,
        gt=1.0,
        description="Largest allowed perplexity ratio, compressed / dense, on every text.",
    )
    min_task_ratio: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Smallest allowed score ratio, compressed / dense, for every metric of every "
        "task. For metrics where lower is better, the ratio is dense / compressed.",
    )

    @model_validator(mode="after")
    def _require_a_limit(self) -> Self:
        if self.max_perplexity_ratio is None and self.min_task_ratio is None:
            raise ValueError("a gate needs max_perplexity_ratio or min_task_ratio: set one of them")
        return self


TaskName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.()-]*$", max_length=128)
]
"""Task or group name registered in lm-evaluation-harness; never a path, which would name code."""


class SpeedPoint(FrozenModel):
    """One load under which both models are timed."""

    batch_size: int = Field(
        default=1, ge=1, le=256, description="Number of sequences processed at once."
    )
    context_length: int = Field(
        default=256,
        ge=1,
        le=131_072,
        description="Prompt length in tokens; decoding starts after the prompt.",
    )


class EvaluationConfig(FrozenModel):
    """Measurements of the dense and the compressed model, made after the compression."""

    perplexity: tuple[str, ...] = Field(
        default=("pydoc",),
        description="Texts to score, named like calibration sources; their held-out parts are "
        "used. The dense model writes `self` and `chat`, and both models are scored on them.",
    )
    text_field: TextField = Field(
        default=None,
        description="Field of the records of perplexity texts that holds the text or the "
        "messages; null looks for the known ones.",
    )
    max_tokens: int = Field(
        default=16_384, ge=64, description="Largest number of tokens scored per text."
    )
    context_length: int = Field(
        default=512, ge=16, description="Perplexity window length in tokens."
    )
    tasks: tuple[TaskName, ...] = Field(
        default=(),
        max_length=32,
        description="Tasks and task groups of lm-evaluation-harness. They need the extra `eval`, "
        "and their data sets on the machine that evaluates.",
    )
    task_limit: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Number of examples per task; null uses all examples.",
    )
    benchmark: bool = Field(
        default=True, description="Measure prefill and decode speed in tokens/s."
    )
    speed_grid: tuple[SpeedPoint, ...] = Field(
        default=(),
        max_length=16,
        description="Loads under which speed, peak memory and KV cache size are measured, in "
        "addition to the benchmark.",
    )
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] = Field(
        default=(),
        max_length=8,
        description="Prompts that both models continue; the report shows both outputs side by "
        "side.",
    )
    gate: GateConfig | None = Field(
        default=None, description="Quality limits for publication; null publishes any result."
    )

    @field_validator("gate")
    @classmethod
    def _require_tasks_for_a_task_limit(
        cls, gate: GateConfig | None, info: ValidationInfo
    ) -> GateConfig | None:
        if gate is not None and gate.min_task_ratio is not None and not info.data.get("tasks"):
            raise ValueError("min_task_ratio needs tasks: name at least one in evaluation.tasks")
        return gate
