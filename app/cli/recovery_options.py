"""The options for recovery fine-tuning, shared by `recover` and the commands that compress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from app.cli.options import calibration_source
from app.cli.panels import RECOVERY
from app.cli.quantities import quantity
from intraslice_core.config import Adapter, RecoveryConfig, RecoveryLoss, Schedule
from intraslice_core.errors import ConfigurationError

DEFAULT_RECOVERY = RecoveryConfig()
LOSSES = (
    "distill (KL divergence to the dense model), ce (cross-entropy on the text) or hidden (error "
    "of the hidden states after every layer)"
)

Tokens = Annotated[
    str,
    typer.Option(
        metavar="N",
        rich_help_panel=RECOVERY,
        help="Largest number of tokens to fine-tune on (for example 200K; 16 or more).",
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Longest duration of the fine-tuning in seconds (above 0, at most 31 days).",
        show_default="no limit",
    ),
]
Auxiliary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LOSS=WEIGHT",
        rich_help_panel=RECOVERY,
        help="Further fine-tuning loss (ce, distill or hidden) and its weight relative to the main "
        "loss (above 0), for example hidden=0.5; repeatable.",
        show_default="none",
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Softmax temperature of both models in the loss distill (0.05 to 100).",
    ),
]
TrainedParameters = Annotated[
    Adapter,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Parameters that are fine-tuned: lora or dora (low-rank adapters, merged at the end), "
        "or none (all weights).",
    ),
]
Rank = Annotated[
    int,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Rank of the low-rank adapters of the fine-tuning (1 to 1024).",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Peak learning rate of the fine-tuning (above 0, at most 1).",
        show_default="1e-3, or 1e-4 for all weights",
    ),
]
LearningRateSchedule = Annotated[
    Schedule,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Learning rate after the warm-up: cosine or linear (down to zero), or constant.",
    ),
]
WarmUp = Annotated[
    float,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Fraction of the fine-tuning in which the learning rate rises (0 or more, below 1).",
    ),
]
WeightDecay = Annotated[
    float,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Weight decay of the fine-tuning, times the learning rate (0 or more, at most 1).",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Sequences per forward pass of each process of the fine-tuning (1 to 4096).",
    ),
]
Accumulation = Annotated[
    int,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Forward passes of each process per fine-tuning step (1 to 4096).",
    ),
]
SequenceLength = Annotated[
    int,
    typer.Option(
        rich_help_panel=RECOVERY, help="Length of a fine-tuning sequence in tokens (16 to 131072)."
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        rich_help_panel=RECOVERY,
        help="Random seed of the fine-tuning's text and adapters (0 or more, below 2³¹).",
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[=WEIGHT]",
        rich_help_panel=RECOVERY,
        help="Text to fine-tune on, named as for --calibration; repeatable.",
        show_default="the calibration text",
    ),
]

OPTIONS: dict[str, tuple[Any, Any]] = {
    "tokens": (Tokens, str(DEFAULT_RECOVERY.max_tokens)),
    "seconds": (Seconds, None),
    "auxiliary": (Auxiliary, None),
    "temperature": (Temperature, DEFAULT_RECOVERY.temperature),
    "adapter": (TrainedParameters, DEFAULT_RECOVERY.adapter),
    "rank": (Rank, DEFAULT_RECOVERY.rank),
    "learning_rate": (LearningRate, None),
    "schedule": (LearningRateSchedule, DEFAULT_RECOVERY.schedule),
    "warm_up": (WarmUp, DEFAULT_RECOVERY.warm_up),
    "weight_decay": (WeightDecay, DEFAULT_RECOVERY.weight_decay),
    "batch_size": (BatchSize, DEFAULT_RECOVERY.batch_size),
    "gradient_accumulation": (Accumulation, DEFAULT_RECOVERY.gradient_accumulation),
    "sequence_length": (SequenceLength, DEFAULT_RECOVERY.sequence_length),
    "seed": (Seed, DEFAULT_RECOVERY.seed),
    "source": (Sources, None),
}
"""Annotation and default of each option; commands that compress put `recover_` before its name."""

_SAME_NAME = (
    *("temperature", "adapter", "rank", "learning_rate", "schedule", "warm_up", "weight_decay"),
    *("batch_size", "gradient_accumulation", "sequence_length", "seed"),
)


def recovery_settings(
    loss: RecoveryLoss, values: Mapping[str, Any], text_field: str | None, prefix: str = "--"
) -> dict[str, Any]:
    """Return the settings of a recovery fine-tuning, still to be validated.

    `alpha` grows with the rank, so that adapters of any rank have the same effective learning
    rate.

    Args:
        loss: main loss.
        values: values of `OPTIONS` by name.
        text_field: field of the text's records.
        prefix: beginning of the options' names, for errors.

    Raises:
        ConfigurationError: if a quantity or a weight is malformed.
    """
    sources = values["source"]
    return {
        **{name: values[name] for name in _SAME_NAME},
        "loss": loss,
        "auxiliary": _weights(values["auxiliary"] or (), prefix + "auxiliary"),
        "max_tokens": quantity(values["tokens"], prefix + "tokens"),
        "max_seconds": values["seconds"],
        "alpha": DEFAULT_RECOVERY.alpha / DEFAULT_RECOVERY.rank * values["rank"],
        "source": calibration_source(sources) if sources else None,
        "text_field": text_field,
    }


def _weights(options: list[str] | tuple[str, ...], field: str) -> dict[str, float]:
    """Return the weights of `LOSS=WEIGHT` options by loss.

    Raises:
        ConfigurationError: if an option has another form.
    """
    weights: dict[str, float] = {}
    for option in options:
        name, _, weight = option.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise ConfigurationError(
                f"{option!r} is not a loss and its weight",
                field=field,
                hint="write LOSS=WEIGHT, for example hidden=0.5",
            ) from None
    return weights
