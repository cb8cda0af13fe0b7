"""Memory of whole models, and of the layer that is read while another one is computed."""

from __future__ import annotations

from intraslice_core.config import CompressionConfig, EvaluationConfig, SpeedPoint
from intraslice_core.cost_model import stage_bytes
from intraslice_core.cost_model.memory import evaluation_bytes, verification_bytes
from intraslice_core.plan import ModelGeometry

GEOMETRY = ModelGeometry(
    num_hidden_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    tie_word_embeddings=False,
)
PARAMS = (8 * 10**9, 6 * 10**9)


def evaluation(**changes: object) -> EvaluationConfig:
    settings = {"perplexity": ("pydoc",), "max_tokens": 8192, "benchmark": False}
    return EvaluationConfig.model_validate(settings | changes)


def test_a_stage_has_the_stored_bytes_of_two_layers() -> None:
    """The one that is computed, and the next one, which is read meanwhile."""
    config = CompressionConfig(ratio=0.3, method="magnitude")
    layer = GEOMETRY.dense_layer().parameters(GEOMETRY)
    stored = [stage_bytes(GEOMETRY, config, 2, size)["compress"].device for size in (2, 4)]
    assert stored[1] - stored[0] == 2 * 2 * layer


def test_scores_take_the_larger_model_with_the_head_of_the_dense_one() -> None:
    scores = evaluation_bytes(GEOMETRY, PARAMS, evaluation(), 2).scores
    head = 128256 * 4096 * 2
    assert 0 <= scores - 2 * PARAMS[0] - head <= 2**29
    longer = evaluation_bytes(GEOMETRY, PARAMS, evaluation(max_tokens=10**6), 2).scores
    assert longer == scores  # the hidden states of the text are on the host


def test_speeds_take_both_models_and_the_cache_of_the_largest_load() -> None:
    assert evaluation_bytes(GEOMETRY, PARAMS, evaluation(), 2).speeds == 0
    timed = evaluation_bytes(GEOMETRY, PARAMS, evaluation(benchmark=True), 2).speeds
    assert timed == 2 * sum(PARAMS)
    grid = (SpeedPoint(batch_size=32, context_length=4096),)
    loaded = evaluation_bytes(GEOMETRY, PARAMS, evaluation(speed_grid=grid), 2).speeds
    cache = 32 * 4096 * 2 * 32 * 8 * 128 * 2
    assert loaded - timed > cache


def test_a_verification_takes_the_model_in_float32() -> None:
    assert 4 * 10**9 < verification_bytes(10**9) < 5 * 10**9
