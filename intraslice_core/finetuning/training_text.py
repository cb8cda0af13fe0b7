"""Choice of the fine-tuning text: the default mixture goes without web text that cannot be read."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from intraslice_core.config import OFFLINE_MIXTURE, CompressionConfig, TrainingTextConfig
from intraslice_core.errors import WebTextError
from intraslice_core.finetuning.procedure import attributed_to_recover


def training_text_or_offline(
    config: CompressionConfig, read: Callable[[TrainingTextConfig, str | None], Tensor]
) -> tuple[CompressionConfig, Tensor]:
    """Read the fine-tuning text; without web text where that is optional and cannot be read.

    Args:
        config: settings with fine-tuning.
        read: function that reads the sequences, and adds a warning if there is one.

    Returns:
        The settings with the text that was used, and its sequences.

    Raises:
        CalibrationError: if the text cannot be read or is too short.
    """
    recover = config.recover
    assert recover is not None
    settings = recover.text(config.calibration)
    with attributed_to_recover():
        try:
            return config, read(settings, None)
        except WebTextError as error:
            if not settings.web_is_optional:
                raise
            warning = f"the fine-tuning is without web text: {error.message}"
        offline = {"source": OFFLINE_MIXTURE, "text_field": settings.text_field}
        recover = recover.model_copy(update=offline)
        config = config.model_copy(update={"recover": recover})
        return config, read(recover.text(config.calibration), warning)
