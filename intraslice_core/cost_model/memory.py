"""Peak memory of a job, estimated by formula.

The peak is reached in one of these situations:

- Compression of a layer: its weights, those of the next one, which is read meanwhile, the Gram and
  cross moments of the wider module and their factors, a batch of activations, and the hidden states
  of all calibration sequences (twice where the method targets the dense hidden states). Where
  memory is short, factors take the memory of one Gram matrix at a time (`blocked`).
- Sensitivity measurement: the hidden states of some sequences before all layers, or those of the
  measured sequences and of all trial cuts.
- Fine-tuning: the compressed model, its teacher if it has one, and the graph of one batch.
- Evaluation: one model, with the dense model's final hidden states and output head; both models
  while they are timed.
- Writing of calibration text: the dense model, and the KV cache of the sequences written at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from intraslice_core.config import (
    CalibrationPart,
    CompressionConfig,
    EvaluationConfig,
    FrozenModel,
    RecoveryConfig,
)
from intraslice_core.cost_model.work import (
    GROUP_SEQUENCES,
    TRIAL_PLANS,
    TRIALS_PER_LAYER,
    EstimatorSequences,
    trial_layers,
)
from intraslice_core.methods import METHODS, CompressionMethod
from intraslice_core.plan import ModelGeometry, dense_parameters
from intraslice_core.text_sources import WRITTEN
from intraslice_core.writing import CPU_CACHE_BYTES, CPU_SEQUENCES, batch_size, sequences_at_once

PROCESS_BYTES = 600 * 2**20
"""Memory of Python with torch and transformers loaded, before any tensor; measured on a CPU."""

_FLOAT64_BYTES = 8
"""Bytes of a number in moments and factorisations."""
_GRAMS = 6
"""Gram matrices held at once while a module is fitted: of both parts of the calibration, damped of
each, a factor, and the copy that a solution takes. The sensitivity measurement holds fewer."""
_GRAMS_IN_PLACE = 3
"""Gram matrices held at once where they are factorised in place: two, and the factor of one. The
two are of both parts of the calibration or, for trial cuts, of the dense layer as it is and in
order of removal."""
_PANELS_HELD = 3
"""Panels held at once as work space of a factorisation in place."""
_CROSSES = 9
"""Cross moments held at once: cross, residual and correction of fit and held-out sequences, fitted,
copied, solved."""
_ACTIVATIONS = 4
"""Activations of the wider module held at once per batch, in float32."""
_GRAPH_TOKENS = 1024
"""Tokens in the graph of a layer whose gradients are computed; at least one sequence."""
_GRAPH_ACTIVATIONS = 16
"""Activations of the wider module's width per token of that graph: inputs of products and norms."""
_TRAINED_ACTIVATIONS = 8
"""Activations per training token and layer, of the hidden width and of the inner width each."""
_COMPARED_STATES = 3
"""Hidden states per token and layer that a loss compares: both models', and their difference."""
KEPT_INNER_BYTES = 48 * 2**20
"""Inner activations of the sliced attention that are kept until its refit, at most."""
LOGITS_AT_ONCE = 2**23
"""Logits held at once in fine-tuning, in numbers."""
# The engine's own values, repeated here because its modules import torch; a test compares them.
IN_PLACE_WIDTH, PANELS = 1024, 16
DENSE_LOGITS = 2**22
EVALUATION_LOGITS = 2**24
EVALUATION_TOKENS = 4096
_LOGIT_BLOCKS = 5
"""Blocks of logits held at once in the evaluation: of both models, their log-probabilities, and one
intermediate result."""
_PROMPT_BYTES = 2**28
"""Logits and activations of the longest prompt of a verification, about."""
_COMPUTE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def peak_memory(
    geometry: ModelGeometry,
    *,
    params_before: int,
    params_after: int,
    item_bytes: int,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
    in_place: bool = False,
) -> int:
    """Estimate the peak memory of a job on a CPU, in bytes.

    On a GPU the sum is divided between host and device (`residency`).

    Args:
        geometry: dimensions of the dense model.
        params_before: weights of the dense model.
        params_after: weights of the compressed model.
        item_bytes: bytes per stored weight.
        compression: settings of the compression.
        evaluation: settings of the evaluation; None without one.
        in_place: factorise wide moments in place.
    """
    # `auto` is float32 on most CPUs; overestimating is safer.
    item = _COMPUTE_BYTES.get(compression.dtype, 4)
    stages = stage_bytes(geometry, compression, item, item_bytes, in_place=in_place)
    layer = max(stage.host + stage.device for stage in stages.values())
    # The result is always verified in float32.
    whole = 4 * params_after
    params = (params_before, params_after)
    if evaluation is not None:
        whole = max(whole, _evaluation_bytes(geometry, params, evaluation, item))
    if compression.recover is not None:
        whole = max(whole, fine_tuning_bytes(geometry, compression.recover, params, item))
    cache = _largest_writing_cache(geometry, compression, evaluation, item)
    if cache:
        whole = max(whole, params_before * item + cache)
    return PROCESS_BYTES + max(layer, whole)


class StageBytes(FrozenModel):
    """Peak memory of one stage in bytes, without the process itself."""

    host: int
    """Hidden states of sequences, which `offload_dir` moves to files; on a GPU where they fit."""
    device: int
    """Weights, moments, factorisations and one batch; host memory too where the device is a CPU."""
    copies: int = 0
    """Copies of the hidden states by which a layer is repeated with a smaller batch, in host memory
    or in files; none where the device is a CPU."""


def stage_bytes(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    item: int,
    stored: int,
    *,
    in_place: bool = False,
) -> dict[str, StageBytes]:
    """Estimate the memory of the stages that hold one layer at a time, by stage name.

    Args:
        geometry: dimensions of the dense model.
        compression: settings of the compression.
        item: bytes per number in the compute dtype.
        stored: bytes per stored weight.
        in_place: factorise wide moments in place, as where memory is short.
    """
    stages = _stages(geometry, compression, item, stored, in_place)
    if METHODS[compression.method].uses_hidden_states and compression.batch_size > 1:
        layer = stages["compress"]
        stages["compress"] = layer.model_copy(update={"copies": layer.host})
    return stages


def gpu_host_bytes(
    geometry: ModelGeometry, compression: CompressionConfig, item: int, stored: int
) -> int:
    """Estimate the host memory of a compression on a GPU, in bytes, without its verification.

    It holds hidden states that do not fit on the GPU, copies of them, the layer that is read and
    the one that is written, and the embeddings. With `offload_dir` hidden states are in files. On
    several GPUs each has a process, and they divide the hidden states.

    Args:
        geometry: dimensions of the dense model.
        compression: settings of the compression.
        item: bytes per number in the compute dtype.
        stored: bytes per stored weight.
    """
    stages = stage_bytes(geometry, compression, item, stored).values()
    layers = 2 * geometry.dense_layer().parameters(geometry)
    weights = stored * (layers + geometry.vocab_size * geometry.hidden_size)
    processes = compression.devices * (PROCESS_BYTES + weights)
    return processes + max(stage.host + stage.copies for stage in stages)


def _stages(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    item: int,
    stored: int,
    in_place: bool,
) -> dict[str, StageBytes]:
    """Estimate the memory of the stages, as `stage_bytes` does, without copies."""
    method, calibration = METHODS[compression.method], compression.calibration
    parts, length = EstimatorSequences.of(compression), calibration.sequence_length
    # The layer as it is stored, dense and sliced, and the next one, which is read meanwhile.
    weights = geometry.dense_layer().parameters(geometry) * (2 * item + 2 * stored)
    if method.slices_residual:
        return {"compress": _stream_bytes(geometry, compression, item, weights)}
    if not method.compensate and method.units is None and not parts.gradients:
        return {"compress": StageBytes(host=0, device=weights)}
    if method.units is not None:
        return _unit_bytes(geometry, compression, item, weights)
    state = length * geometry.hidden_size * item
    width = max(geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
    moments = _moment_bytes(geometry, method, width, in_place)
    batch = compression.batch_size * length * width * 4 * _ACTIVATIONS
    heads = geometry.num_attention_heads * geometry.head_dim
    batch += min(KEPT_INNER_BYTES, calibration.samples * length * heads * item)
    head = geometry.hidden_size * geometry.vocab_size * item
    logits = 4 * 4 * max(DENSE_LOGITS, geometry.vocab_size)
    layer_or_logits = weights + max(moments + batch, head + logits)
    states = calibration.samples * state * (2 if method.dense_target else 1)
    stages = {"compress": StageBytes(host=states, device=weights + moments + batch)}
    if parts.layer_tokens:
        candidates = (geometry.num_hidden_layers + 1) * parts.layer_tokens
        stages["layers"] = StageBytes(
            host=candidates * geometry.hidden_size * item, device=weights + batch
        )
    if parts.gradients:
        graph = max(_GRAPH_TOKENS, length) * width * item * _GRAPH_ACTIVATIONS
        fishers = 4 * _FLOAT64_BYTES * geometry.hidden_size**2
        sequences = min(GROUP_SEQUENCES, max(_GRAPH_TOKENS // length, 1), parts.gradients)
        stages["gradients"] = StageBytes(
            host=sequences * state * (geometry.num_hidden_layers + 2),
            device=weights + max(graph + fishers, head + logits),
        )
    if parts.mask_tokens:
        stages["masks"] = StageBytes(
            host=0, device=weights + max(_mask_pass_bytes(geometry, length, item), head + logits)
        )
    if parts.sensitivity:
        trials = 1 + TRIALS_PER_LAYER * len(trial_layers(geometry.num_hidden_layers))
        cut_states = trials * parts.trial_cut_tokens * geometry.hidden_size * item
        stages["sensitivity"] = StageBytes(
            host=parts.sensitivity * state + cut_states, device=layer_or_logits
        )
    if parts.trial_fit:
        tokens = 2 * (1 + TRIAL_PLANS) * parts.judged_tokens
        stages["trial_compression"] = StageBytes(
            host=parts.trial_fit * state,
            device=layer_or_logits + tokens * geometry.hidden_size * item,
        )
    return stages


def _moment_bytes(
    geometry: ModelGeometry, method: CompressionMethod, width: int, in_place: bool
) -> int:
    """Estimate the memory of a module's moments and their factors.

    Args:
        geometry: dimensions of the dense model.
        method: of the compression.
        width: of the module's inner activations.
        in_place: factorise wide moments in place.
    """
    columns = _GRAMS * width
    if in_place and width >= IN_PLACE_WIDTH:
        # One more where neurons are chosen by those of both parts of the calibration together.
        by_both = method.neuron_choice == "obs" and not method.measures_sensitivity
        grams = _GRAMS_IN_PLACE + (by_both and len(method.damping_own) > 1)
        columns = grams * width + _PANELS_HELD * -(-width // PANELS)
    return _FLOAT64_BYTES * width * (columns + _CROSSES * geometry.hidden_size)


def _stream_bytes(
    geometry: ModelGeometry, compression: CompressionConfig, item: int, weights: int
) -> StageBytes:
    """Estimate the memory of a method that slices the residual stream.

    It holds a layer, dense and sliced, a batch of activations, the stream's second moment with its
    eigenvectors and their work space, and the hidden states of all sequences.
    """
    calibration, hidden = compression.calibration, geometry.hidden_size
    width = max(geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
    batch = compression.batch_size * calibration.sequence_length * width * 4 * _ACTIVATIONS
    moments = _FLOAT64_BYTES * hidden * (_GRAMS * hidden + width)
    states = calibration.samples * calibration.sequence_length * hidden * item
    return StageBytes(host=states, device=weights + moments + batch)


def _mask_pass_bytes(geometry: ModelGeometry, length: int, item: int) -> int:
    """Estimate the states of one sequence before all layers, and the graph of one layer."""
    width = max(geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
    states = geometry.hidden_size * (geometry.num_hidden_layers + 2)
    return length * item * (width * _GRAPH_ACTIVATIONS + states)


def _unit_bytes(
    geometry: ModelGeometry, compression: CompressionConfig, item: int, weights: int
) -> dict[str, StageBytes]:
    """Estimate the memory of methods that remove whole heads and neurons, by stage name.

    They hold a layer, a batch of activations, and the hidden states of all sequences; the removal
    of attentions holds those of a model without each attention.
    """
    calibration, parts = compression.calibration, EstimatorSequences.of(compression)
    state = calibration.sequence_length * geometry.hidden_size * item
    width = max(geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
    batch = compression.batch_size * calibration.sequence_length * width * 4 * _ACTIVATIONS
    states = calibration.samples * state
    candidates = (geometry.num_hidden_layers + 1) * parts.attention_tokens
    head = geometry.hidden_size * geometry.vocab_size * item
    logits = 4 * 4 * max(DENSE_LOGITS, geometry.vocab_size)
    stages = {"compress": StageBytes(host=states, device=weights + batch)}
    if parts.attention_tokens:
        stages["attentions"] = StageBytes(
            host=candidates * geometry.hidden_size * item,
            device=weights + max(batch, head + logits),
        )
    return stages


def fine_tuning_bytes(
    geometry: ModelGeometry, recover: RecoveryConfig, params: tuple[int, int], item: int
) -> int:
    """Estimate the memory of recovery fine-tuning on its device.

    It holds the compressed model, the dense one as teacher where the loss needs it, and training;
    before, the dense model alone where it writes the text.

    Args:
        geometry: dimensions of the dense model.
        recover: settings of the fine-tuning.
        params: weights of the dense model and of the compressed model.
        item: bytes per number in the compute dtype.
    """
    before, after = params
    models = after + before * recover.needs_teacher
    training = _recovery_bytes(geometry, recover, after, item)
    return max(before * item, models * item + training)


def _recovery_bytes(
    geometry: ModelGeometry, recover: RecoveryConfig, params_after: int, item: int
) -> int:
    """Estimate the fine-tuning memory without the models.

    Contains the trained parameters in float32 with their gradients and optimiser moments, the graph
    of one batch, logits, and the hidden states of both models where they are compared.
    """
    hidden, inner = geometry.hidden_size, geometry.intermediate_size
    queries = geometry.num_attention_heads * geometry.head_dim
    values = geometry.num_key_value_heads * geometry.head_dim
    edges = 2 * (hidden + queries) + 2 * (hidden + values)
    edges += geometry.mlp_projections * (hidden + inner)
    adapters = geometry.num_hidden_layers * recover.rank * edges
    trained = params_after if recover.adapter == "none" else adapters
    tokens = recover.batch_size * recover.sequence_length
    graph = geometry.num_hidden_layers * tokens * _TRAINED_ACTIVATIONS * (hidden + inner) * item
    states = geometry.num_hidden_layers * tokens * hidden * item * _COMPARED_STATES
    states *= recover.loss_weights.hidden > 0.0
    return 16 * trained + graph + states + 4 * 4 * max(LOGITS_AT_ONCE, geometry.vocab_size)


class EvaluationBytes(FrozenModel):
    """Peak memory of an evaluation on its device in bytes, without the process itself."""

    scores: int
    """One model, the dense model's output head, and logits."""
    speeds: int
    """Both models and the largest load; 0 where no speed is measured."""


def evaluation_bytes(
    geometry: ModelGeometry, params: tuple[int, int], evaluation: EvaluationConfig, item: int
) -> EvaluationBytes:
    """Estimate the memory of an evaluation on its device.

    Args:
        geometry: dimensions of the dense model.
        params: weights of the dense model and of the compressed model.
        evaluation: settings of the evaluation.
        item: bytes per number in the compute dtype.
    """
    rows = min(max(EVALUATION_TOKENS, evaluation.context_length), evaluation.max_tokens)
    logits = min(rows * geometry.vocab_size, max(EVALUATION_LOGITS, geometry.vocab_size))
    head = geometry.vocab_size * geometry.hidden_size * item
    is_timed = evaluation.benchmark or bool(evaluation.speed_grid)
    timed = sum(params) * item + _load_bytes(geometry, evaluation, item)
    return EvaluationBytes(
        scores=max(params) * item + head + _LOGIT_BLOCKS * 4 * logits,
        speeds=timed if is_timed else 0,
    )


def _evaluation_bytes(
    geometry: ModelGeometry, params: tuple[int, int], evaluation: EvaluationConfig, item: int
) -> int:
    """Estimate the evaluation's memory on a CPU, with the dense model's final hidden states."""
    needed = evaluation_bytes(geometry, params, evaluation, item)
    head = geometry.vocab_size * geometry.hidden_size * item
    states = dense_output_bytes(geometry, evaluation, item) - head
    return max(needed.scores + states, needed.speeds)


def verification_bytes(parameters: int) -> int:
    """Estimate the memory of a verification: the model in float32 and the longest prompt.

    The model here is freed before the process that loads the files begins.
    """
    return 4 * parameters + _PROMPT_BYTES


def dense_output_bytes(geometry: ModelGeometry, evaluation: EvaluationConfig, item: int) -> int:
    """Return the bytes of the dense model's outputs that an evaluation keeps for comparison.

    They are its final hidden states at all scored positions, and its output head.
    """
    tokens = len(set(evaluation.perplexity)) * evaluation.max_tokens
    return (tokens + geometry.vocab_size) * geometry.hidden_size * item


def _load_bytes(geometry: ModelGeometry, evaluation: EvaluationConfig, item: int) -> int:
    """Estimate the KV cache and one layer's activations of the largest timed load."""
    token = cache_bytes_per_token(geometry, item)
    width = max(geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
    tokens = (point.batch_size * point.context_length for point in evaluation.speed_grid)
    return max(tokens, default=0) * (token + width * item * _ACTIVATIONS)


def cache_bytes_per_token(geometry: ModelGeometry, item: int) -> int:
    """Return the bytes of all layers' keys and values of one token."""
    return 2 * geometry.num_hidden_layers * geometry.num_key_value_heads * geometry.head_dim * item


def _largest_writing_cache(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
    item: int,
) -> int:
    """Estimate the KV cache of the sequences written at once, in bytes; at least one sequence.

    That of a batch on a CPU. On an accelerator batches take what is free, so that one sequence is
    what must fit. Sliding windows are not considered, which make it smaller.
    """
    written = written_sequences(compression.resolved_calibration.parts())
    # The parts of the calibration are written together.
    groups = []
    if written:
        sequences = sum(sequences for sequences, _ in written)
        groups.append((sequences, max(length for _, length in written)))
    if evaluation is not None and not WRITTEN.isdisjoint(evaluation.perplexity):
        length = min(evaluation.context_length, evaluation.max_tokens)
        groups.append((evaluation.max_tokens // length, length))
    token = cache_bytes_per_token(geometry, item)
    sizes = (
        batch_size(sequences, written_at_once(length * token)) * length * token
        for sequences, length in groups
    )
    return max(sizes, default=0)


def least_writing_bytes(geometry: ModelGeometry, compression: CompressionConfig, item: int) -> int:
    """Return the least device memory in which the dense model writes calibration text.

    It holds the model, and the keys and values of one sequence; more sequences are written at once
    where more memory is free. 0 if the model writes none.

    Args:
        geometry: dimensions of the dense model.
        compression: settings of the compression.
        item: bytes per number in the compute dtype.
    """
    written = written_sequences(compression.resolved_calibration.parts())
    if not written:
        return 0
    longest = max(length for _, length in written)
    token = cache_bytes_per_token(geometry, item)
    return dense_parameters(geometry) * item + longest * token


def written_sequences(parts: Iterable[CalibrationPart]) -> list[tuple[int, int]]:
    """Return number and length of the sequences of every part that the model writes."""
    return [(part.samples, part.sequence_length) for part in parts if part.source in WRITTEN]


def written_at_once(sequence_bytes: int) -> int:
    """Return the number of sequences that are written at once on a CPU.

    Args:
        sequence_bytes: keys and values of a sequence.
    """
    return sequences_at_once(sequence_bytes, CPU_CACHE_BYTES, CPU_SEQUENCES)
