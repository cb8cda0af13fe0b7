"""Peak memory by the engine's own formula.

A job is at its largest in a layer, in the training after all layers, in the evaluation, or where
the model writes its own text. In a layer: its weights, the Gram and cross moments of the wider
module and what is factorised from them, a batch of activations, and the hidden states of all
calibration sequences (twice where the method follows the dense stream); before that, in the
estimator, the states of a group of sequences in front of all layers, or those of all trials. In the
training: the compressed model, its teacher where it has one, and a batch's graph. In the
evaluation: both models whole, because only so can they take turns at the clock. While it writes:
the dense model whole, and the keys and values of what it has written.
"""

from __future__ import annotations

from intraslice_core.config import CompressionConfig, EvaluationConfig, FrozenModel, RecoveryConfig
from intraslice_core.cost_model.work import (
    GROUP_SEQUENCES,
    TRIALS_A_SPOT,
    EstimatorSequences,
    spots,
)
from intraslice_core.methods import METHODS
from intraslice_core.plan import ModelGeometry
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
_GRAPH_TOKENS = 1024
"""In the graph of a layer whose gradients are taken; one sequence at least."""
_GRAPH_ACTIVATIONS = 16
"""Of the wider module's width, kept of each of these tokens: inputs of every product and norm."""
_TRAINED_ACTIVATIONS = 8
"""Of a layer's stream and its inner width each, kept of every token of a training's batch."""
LOGITS_AT_ONCE = 2**23
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
    stages = stage_bytes(geometry, compression, item, item_bytes)
    layer = max(stage.host + stage.device for stage in stages.values())
    # The result is verified in float32 in any case.
    whole = 4 * params_after
    if evaluation is not None:
        both = evaluation.benchmark or evaluation.speed_grid
        models = params_before + params_after if both else params_before
        logits = 2 * 4 * _LOGIT_ROWS * geometry.vocab_size
        whole = max(whole, models * item + max(logits, _load_bytes(geometry, evaluation, item)))
    if compression.recover is not None:
        training = _recovery_bytes(geometry, compression.recover, item)
        models = params_after + params_before * (compression.recover.loss == "distill")
        whole = max(whole, params_before * item, models * item + training)
    cache = _writing_cache_bytes(geometry, compression, evaluation, item)
    if cache:
        whole = max(whole, params_before * item + cache)
    return PROCESS_BYTES + max(layer, whole)


class StageBytes(FrozenModel):
    """What one stage holds at its peak, beyond the process itself."""

    host: int
    """Hidden states of sequences, which `offload_dir` puts into files."""
    device: int
    """Weights, sums, factorisations and one batch; on a CPU host memory as well."""


def stage_bytes(
    geometry: ModelGeometry, compression: CompressionConfig, item: int, stored: int
) -> dict[str, StageBytes]:
    """By the stages of the engine that hold one layer at a time.

    Args:
        geometry: of the dense model.
        compression: what is asked for.
        item: bytes of a number in the compute dtype.
        stored: bytes of a stored weight.
    """
    method, calibration = METHODS[compression.method], compression.calibration
    weights = geometry.dense_layer().parameters(geometry) * (2 * item + stored)
    if not method.compensate and not EstimatorSequences.of(compression).gradients:
        return {"compress": StageBytes(host=0, device=weights)}
    parts, length = EstimatorSequences.of(compression), calibration.sequence_length
    state = length * geometry.hidden_size * item
    width = max(geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
    moments = _WIDE * width * (_GRAMS * width + _CROSSES * geometry.hidden_size)
    batch = compression.batch_size * length * width * 4 * _ACTIVATIONS
    head = geometry.hidden_size * geometry.vocab_size * item
    logits = 4 * 4 * max(LOGITS_AT_ONCE, geometry.vocab_size)
    streams = 2 if method.dense_target else 1
    found = {
        "compress": StageBytes(
            host=calibration.samples * state * streams, device=weights + moments + batch
        )
    }
    if parts.gradients:
        graph = max(_GRAPH_TOKENS, length) * width * item * _GRAPH_ACTIVATIONS
        fishers = 4 * _WIDE * geometry.hidden_size**2
        held = min(GROUP_SEQUENCES, parts.gradients) * state * (geometry.num_hidden_layers + 2)
        found["gradients"] = StageBytes(
            host=held, device=weights + max(graph + fishers, head + logits)
        )
    if parts.learning:
        trials = 1 + TRIALS_A_SPOT * len(spots(geometry.num_hidden_layers))
        found["learning"] = StageBytes(
            host=(parts.learning + parts.check * trials) * state,
            device=weights + max(moments + batch, head + logits),
        )
    if parts.trial_compression:
        found["rehearsal"] = StageBytes(
            host=(2 * parts.trial_compression + parts.check) * state,
            device=weights + max(moments + batch, head + logits),
        )
    return found


def _recovery_bytes(geometry: ModelGeometry, recover: RecoveryConfig, item: int) -> int:
    """Beside the models: adapters with gradients and moments, the graph of a batch, logits."""
    hidden, inner = geometry.hidden_size, geometry.intermediate_size
    queries = geometry.num_attention_heads * geometry.head_dim
    values = geometry.num_key_value_heads * geometry.head_dim
    edges = 2 * (hidden + queries) + 2 * (hidden + values)
    edges += geometry.mlp_projections * (hidden + inner)
    adapters = geometry.num_hidden_layers * recover.rank * edges
    tokens = recover.batch_size * recover.sequence_length
    graph = geometry.num_hidden_layers * tokens * _TRAINED_ACTIVATIONS * (hidden + inner) * item
    return 16 * adapters + graph + 4 * 4 * max(LOGITS_AT_ONCE, geometry.vocab_size)


def _load_bytes(geometry: ModelGeometry, evaluation: EvaluationConfig, item: int) -> int:
    """Keys, values and one layer's activations of the largest load that is timed."""
    token = _cache_bytes_per_token(geometry, item)
    width = max(geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
    tokens = (one.batch_size * one.context_length for one in evaluation.speed_grid)
    return max(tokens, default=0) * (token + width * item * _ACTIVATIONS)


def _cache_bytes_per_token(geometry: ModelGeometry, item: int) -> int:
    """Keys and values of all layers."""
    return 2 * geometry.num_hidden_layers * geometry.num_key_value_heads * geometry.head_dim * item


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
    token = _cache_bytes_per_token(geometry, item)
    sizes = (
        min(rows * length * token, max(WRITING_CACHE_BYTES, length * token))
        for rows, length in written
    )
    return max(sizes, default=0)
