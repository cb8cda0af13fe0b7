"""The wire format of a validation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from app.domain.validation import Caution, Duration, TargetSupport, Validation
from intraslice_core.cost_model import Estimate


class ValidationOut(BaseModel):
    """The job would be accepted; what it would make and take, as far as that is known.

    `estimate` is null where the model cannot be read before a worker opens it; `durations` has an
    entry for each class of machines that has run the method, newest measurement first.
    """

    object: Literal["validation"] = "validation"
    valid: Literal[True] = True
    estimate: Estimate | None
    seconds: float | None
    durations: list[Duration]
    targets: list[TargetSupport]
    warnings: list[Caution]

    @classmethod
    def of(cls, validation: Validation) -> ValidationOut:
        durations = validation.durations
        return cls(
            estimate=validation.estimate,
            seconds=durations[0].seconds if durations else None,
            durations=list(durations),
            targets=list(validation.targets),
            warnings=list(validation.cautions),
        )
