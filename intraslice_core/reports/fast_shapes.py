"""Report on the preference for fast shapes."""

from __future__ import annotations

from pydantic import Field

from intraslice_core.config import FrozenModel


class FastShapesReport(FrozenModel):
    """Preference for shapes that matrix kernels read fast (`prefer_fast_shapes`).

    It is null where it is switched off or the model is too narrow for it.
    """

    multiple: int | None = Field(
        description="Number that MLP widths are multiples of, unless dense; null: no preferred "
        "multiple was cheap enough, and only `round_to` applies."
    )
    extra_loss: float | None = Field(
        default=None,
        description="Predicted loss of the preference in nats per token, at most 0.01; null for "
        "uniform shapes.",
    )
