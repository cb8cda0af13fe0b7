"""Length limit of models with a table of learned positions (OPT); imports no torch.

With rotary embedding, longer sequences than a model was trained on give poor results; without a row
in the table there is no result at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.errors import ConfigurationError
from intraslice_core.families import FAMILIES

DECODED = 32
"""Tokens decoded after the prompt of a speed measurement."""


def learned_positions(settings: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that a model's table of positions allows, None without a table.

    Args:
        settings: config.json of a dense model or of a result.
    """
    rows, offset = settings.get("position_rows") or 0, settings.get("position_offset") or 0
    family = FAMILIES.get(settings.get("model_type") or "")
    if family is not None:
        rows = family.position_rows({**family.facts.defaults, **settings})
        offset = family.position_offset
    return rows - offset if rows else None


def require_lengths(
    limit: int | None,
    compression: CompressionConfig | None,
    evaluation: EvaluationConfig | None,
) -> None:
    """Raise if a sequence of a compression or evaluation is longer than the table of positions.

    Args:
        limit: result of `learned_positions`.
        compression: settings whose sequences are checked, if any.
        evaluation: settings whose windows and prompts are checked, if any.

    Raises:
        ConfigurationError: naming the setting, its value and the limit.
    """
    if limit is None:
        return
    lengths: list[tuple[str, int]] = []
    if compression is not None:
        lengths += _compression_lengths(compression)
    if evaluation is not None:
        lengths += _evaluation_lengths(evaluation)
    for field, length in lengths:
        if length > limit:
            raise ConfigurationError(
                f"{length} tokens are longer than the model's table of {limit} learned positions",
                field=field,
                hint=f"give at most {limit}; speed measurements decode {DECODED} of them",
            )


def _compression_lengths(compression: CompressionConfig) -> Iterator[tuple[str, int]]:
    yield "compression.calibration.sequence_length", compression.calibration.sequence_length
    if compression.recover is not None:
        yield "compression.recover.sequence_length", compression.recover.sequence_length


def _evaluation_lengths(evaluation: EvaluationConfig) -> Iterator[tuple[str, int]]:
    if evaluation.perplexity:
        yield "evaluation.context_length", evaluation.context_length
    for point in evaluation.speed_grid:
        yield "evaluation.speed_grid", point.context_length + DECODED
