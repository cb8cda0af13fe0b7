"""Peak memory by the engine's own formula.

A job is at its largest in a layer, in the evaluation, or where the model writes its own text. In a
layer: its weights, the Gram and cross moments of the wider module and what is factorised from
them, a batch of activations, and the hidden states of all calibration sequences (twice where the
method follows the dense stream). In the evaluation: both models whole, because only so can they
take turns at the clock. While it writes: the dense model whole, and the keys and values of what it
has written.
"""

from __future__ import annotations

from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.plan import ModelGeometry
from intraslice_core.presets import PRESETS
from intraslice_core.text_sources import WRITING_CACHE_BYTES, WRITTEN

PROCESS_BYTES = 600 * 2**20
"""Python with torch and transformers loaded, before any tensor; measured on a CPU."""

_WIDE = 8
"""Bytes of float64, which sums and factorisations are kept in."""
_GRAMS = 6
"""Fit, held-out, their sum, factor, inverse and the update of an elimination step."""
_CROSSES = 9
"""Cross and correction of the same three, fitted, copied and solved."""
_ACTIVATIONS = 4
"""Activations of the wider module that a batch holds at once, in float32."""
_LOGIT_ROWS = 1024
_COMPUTE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def peak_memory(
    geometry: ModelGeometry,
    *,
    params_before: int,
    params_after: int,
    item_bytes: int,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
) -> int:
    """Bytes at the peak of a job on a CPU; a worker on a GPU divides them between both.

    Args:
        geometry: of the dense model.
        params_before: all weights.
        params_after: all weights that stay.
        item_bytes: of a stored weight.
        compression: what is asked for.
        evaluation: what is measured, if anything.
    """
    # `auto` is float32 on most CPUs; the larger answer is the safer one.
    item = _COMPUTE_BYTES.get(compression.dtype, 4)
    layer = _layer_bytes(geometry, compression, item, item_bytes)
    # The result is verified in float32 in any case.
    whole = 4 * params_after
    if evaluation is not None:
        models = params_before + params_after if evaluation.benchmark else params_before
        logits = 2 * 4 * _LOGIT_ROWS * geometry.vocab_size
        whole = max(whole, models * item + logits)
    cache = _writing_cache_bytes(geometry, compression, evaluation, item)
    if cache:
        whole = max(whole, params_before * item + cache)
    return PROCESS_BYTES + max(layer, whole)


def _layer_bytes(
    geometry: ModelGeometry, compression: CompressionConfig, item: int, stored: int
) -> int:
    preset, calibration = PRESETS[compression.method], compression.calibration
    weights = geometry.dense_layer().parameters(geometry) * (2 * item + stored)
    if not preset.compensate:
        return weights
    tokens = calibration.samples * calibration.sequence_length
    streams = tokens * geometry.hidden_size * item * (2 if preset.dense_target else 1)
    width = max(geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
    moments = _WIDE * width * (_GRAMS * width + _CROSSES * geometry.hidden_size)
    batch = compression.batch_size * calibration.sequence_length
    return weights + streams + moments + batch * width * 4 * _ACTIVATIONS


def _writing_cache_bytes(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
    item: int,
) -> int:
    """Keys and values of the sequences that are written at once; at least one, however long."""
    written = [
        (part.samples, part.sequence_length)
        for part in compression.calibration.parts()
        if part.source in WRITTEN
    ]
    if evaluation is not None and not WRITTEN.isdisjoint(evaluation.perplexity):
        length = min(evaluation.context_length, evaluation.max_tokens)
        written.append((evaluation.max_tokens // length, length))
    token = 2 * geometry.num_hidden_layers * geometry.num_key_value_heads * geometry.head_dim * item
    sizes = (
        min(rows * length * token, max(WRITING_CACHE_BYTES, length * token))
        for rows, length in written
    )
    return max(sizes, default=0)
