"""Memory of whole models, of layers wider than most, and of the layer that is read meanwhile."""

from __future__ import annotations

import pytest

from benchmarks.large_models import LLAMAS
from intraslice_core.config import CompressionConfig, EvaluationConfig, SpeedPoint
from intraslice_core.cost_model import gpu_host_bytes, stage_bytes
from intraslice_core.cost_model.memory import PROCESS_BYTES, evaluation_bytes, verification_bytes
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


# -- wide layers ----------------------------------------------------------------------------------

LARGEST = LLAMAS["Llama-3-70B"]
GIB = 2**30
READ = {"source": "pydoc", "samples": 128, "sequence_length": 2048, "self_share": 0.0}


def llama_70b(**changes: object) -> CompressionConfig:
    """Return settings under which the model need not be in memory as a whole."""
    settings = {"ratio": 0.3, "calibration": READ}
    return CompressionConfig.model_validate(settings | changes)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_a_llama_of_70_billion_fits_a_gpu_of_80_gib_and_a_host_of_64(ratio: float) -> None:
    """With its hidden states, and a fifth of the GPU left for what the model does not know."""
    config = llama_70b(ratio=ratio)
    stages = stage_bytes(LARGEST, config, 2, 2, in_place=True).values()
    assert max(stage.device + stage.host for stage in stages) <= 0.8 * 80 * GIB
    copied = stage_bytes(LARGEST, config, 2, 2).values()
    assert max(stage.device for stage in copied) > 0.8 * 80 * GIB
    assert gpu_host_bytes(LARGEST, config, 2, 2) <= 64 * GIB


def test_a_llama_of_70_billion_fits_a_cpu_with_64_gib() -> None:
    """In float32 with hidden states in files, in bfloat16 with them in memory."""

    def needed(item: int, in_place: bool, in_files: bool) -> int:
        stages = stage_bytes(LARGEST, llama_70b(), item, 2, in_place=in_place).values()
        return PROCESS_BYTES + max(stage.device + stage.host * (not in_files) for stage in stages)

    assert needed(4, in_place=True, in_files=True) <= 64 * GIB < needed(4, False, in_files=True)
    assert needed(2, in_place=True, in_files=False) <= 64 * GIB < needed(2, False, in_files=False)


def test_in_place_three_of_six_gram_matrices_are_left() -> None:
    gram = 8 * GEOMETRY.intermediate_size**2
    for method, saved in (("intraslice_plus", 3), ("modegpt", 3), ("fusegpt", 2)):
        config = CompressionConfig(ratio=0.3, method=method)
        copied, in_place = (
            stage_bytes(GEOMETRY, config, 2, 2, in_place=flag)["compress"] for flag in (False, True)
        )
        assert 0 <= saved * gram - (copied.device - in_place.device) <= gram / 4
        assert in_place.host == copied.host


def test_narrow_moments_are_copied() -> None:
    narrow = GEOMETRY.model_copy(update={"intermediate_size": 1000, "num_attention_heads": 4})
    config = llama_70b()
    assert stage_bytes(narrow, config, 2, 2, in_place=True) == stage_bytes(narrow, config, 2, 2)


def test_a_layer_that_may_be_repeated_has_copies_of_its_hidden_states_on_the_host() -> None:
    states = 2 * 128 * 2048 * 4096 * 2
    config = llama_70b()
    assert stage_bytes(GEOMETRY, config, 2, 2)["compress"].copies == states
    assert stage_bytes(GEOMETRY, config, 2, 2)["sensitivity"].copies == 0
    once = llama_70b(batch_size=1)
    assert stage_bytes(GEOMETRY, once, 2, 2)["compress"].copies == 0
    dense = llama_70b(method="magnitude")
    assert stage_bytes(GEOMETRY, dense, 2, 2)["compress"].copies == 0
    assert gpu_host_bytes(GEOMETRY, config, 2, 2) - gpu_host_bytes(GEOMETRY, once, 2, 2) == states
