"""Lengths of sequences compared with a model's context, the longest that it was trained on.

With rotary embedding a longer sequence has an answer, but a poor one, so it is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from intraslice_core.config import CompressionConfig, EvaluationConfig


def context_of(settings: Mapping[str, Any]) -> int | None:
    """Return a model's context in tokens, or None if its settings name none.

    Args:
        settings: content of config.json.
    """
    text = settings.get("text_config")
    values = (settings, text) if isinstance(text, Mapping) else (settings,)
    contexts = (value.get("max_position_embeddings") for value in values)
    return next((context for context in contexts if type(context) is int and context > 0), None)


def beyond_context(
    context: int | None,
    compression: CompressionConfig | None,
    evaluation: EvaluationConfig | None,
) -> tuple[str, ...]:
    """Return a warning for every setting whose sequences are longer than the context.

    Args:
        context: the model's context in tokens; None passes everything.
        compression: settings of a compression, if any.
        evaluation: settings of an evaluation, if any.
    """
    if context is None:
        return ()
    return tuple(
        f"{name} {length:,} exceeds the model's context of {context:,} tokens, beyond which its "
        "predictions are poor"
        for name, length in (*_of_compression(compression), *_of_evaluation(evaluation))
        if length > context
    )


def _of_compression(compression: CompressionConfig | None) -> Iterator[tuple[str, int]]:
    if compression is None:
        return
    yield "calibration.sequence_length", compression.calibration.sequence_length
    if compression.recover is not None:
        yield "recover.sequence_length", compression.recover.sequence_length


def _of_evaluation(evaluation: EvaluationConfig | None) -> Iterator[tuple[str, int]]:
    if evaluation is None:
        return
    if evaluation.perplexity:
        yield "evaluation.context_length", evaluation.context_length
    for point in evaluation.speed_grid:
        yield "evaluation.speed_grid context_length", point.context_length
