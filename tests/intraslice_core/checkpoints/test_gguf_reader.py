"""Converted GGUF files compute what llama.cpp computes with the same file.

The largest difference of log-probabilities is at most 0.03 for float16 (measured: 0.022). For
Q8_0 llama.cpp also quantises activations, which changes these tiny random models by a tenth of the
standard deviation of their log-probabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from intraslice_core.checkpoints.gguf_reader import convert_gguf
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError
from tests.intraslice_core.checkpoints.gguf.family_cases import (
    FAMILY_CASES,
    LLAMA,
    LONG,
    ORIGINAL,
    THETA,
    Case,
)
from tests.intraslice_core.checkpoints.gguf.files import llama_cpp, tiny, write_gguf

F16, Q8_0 = GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
TOKENS = torch.randint(3, 260, (40,), generator=torch.Generator().manual_seed(1)).tolist()
PROMPTS = [TOKENS[:24], TOKENS]
F16_TOLERANCE, Q8_TOLERANCE = 0.03, 0.2
PHI3 = {"rope.dimension_count": 16, ORIGINAL: 256, "attention.sliding_window": 0, **THETA}
SHORT = [1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4]
SOFTCAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA3 = {"rope.freq_base": 1e6, "attention.sliding_window": 6}


def without_output_bias(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("attn_output.bias")]:
        del tensors[name]


def fused(tensors: dict[str, Tensor]) -> None:
    """Stack q, k and v, as the converter's option `--fuse-qkv` does."""
    for name in [name for name in tensors if ".attn_q." in name]:
        parts = [
            tensors.pop(name.replace("attn_q", part)) for part in ("attn_q", "attn_k", "attn_v")
        ]
        tensors[name.replace("attn_q", "attn_qkv")] = torch.cat(parts)


def unfused(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".attn_qkv." in name]:
        parts = torch.split(tensors.pop(name), [64, 32, 32])
        for part, rows in zip(("attn_q", "attn_k", "attn_v"), parts, strict=True):
            tensors[name.replace("attn_qkv", part)] = rows


BIASED = {"head_dim": 16, "attention_bias": True, "mlp_bias": True}
CASES = {
    "llama": Case("llama", {"head_dim": 16, "tie_word_embeddings": True}, LLAMA),
    "llama_biased_untied": Case("llama", BIASED | {"tie_word_embeddings": False}, LLAMA),
    "llama_without_output_bias": Case("llama", BIASED, LLAMA, change=without_output_bias),
    "llama_fused": Case("llama", BIASED, LLAMA, change=fused),
    "llama_wide_heads": Case("llama", {"head_dim": 32}, LLAMA | {"rope.dimension_count": 32}),
    "llama_linear": Case(
        "llama",
        {"head_dim": 16},
        LLAMA | {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama_old_linear": Case("llama", {"head_dim": 16}, LLAMA | {"rope.scale_linear": 4.0}),
    "llama_none": Case(
        "llama",
        {"head_dim": 16},
        LLAMA | {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
    ),
    "llama_yarn": Case(
        "llama",
        {"head_dim": 16},
        LLAMA
        | {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, ORIGINAL: 32}
        | {"rope.scaling.attn_factor": 1.25, "rope.scaling.finetuned": True},
    ),
    "llama3_tables": Case("llama", {"head_dim": 16}, LLAMA, {"rope_freqs.weight": LONG}),
    "llama_longrope": Case(
        "llama",
        {"head_dim": 16},
        LLAMA
        | {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0, ORIGINAL: 16}
        | {"rope.scaling.attn_factor": 1.2},
        {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
    ),
    "qwen2": Case("qwen2", {"use_sliding_window": False}, THETA),
    "qwen2_yarn_untied": Case(
        "qwen2",
        {"use_sliding_window": False, "tie_word_embeddings": False},
        THETA | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, ORIGINAL: 64},
    ),
    "qwen3": Case("qwen3", {"head_dim": 32, "attention_bias": False}, THETA),
    "phi": Case("phi", {"intermediate_size": 256}, {"rope.dimension_count": 8}),
    "phi_fused": Case("phi", {"intermediate_size": 256}, {"rope.dimension_count": 8}, change=fused),
    "phi3": Case("phi3", {"sliding_window": None}, PHI3),
    "phi3_long": Case(
        "phi3",
        {"sliding_window": None, "tie_word_embeddings": True},
        PHI3 | {ORIGINAL: 16, "rope.scaling.attn_factor": 1.19},
        {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
    ),
    "phi3_short": Case(
        "phi3",
        {"sliding_window": None, "max_position_embeddings": 8192},
        PHI3 | {ORIGINAL: 4096, "rope.dimension_count": 12, "rope.scaling.attn_factor": 1.1},
        {"rope_factors_long.weight": LONG[:6], "rope_factors_short.weight": SHORT[:6]},
        change=unfused,
    ),
    "gemma2": Case("gemma2", {"head_dim": 32}, SOFTCAPS | {"attention.sliding_window": 6}),
    "gemma3": Case("gemma3", {}, GEMMA3 | {"final_logit_softcapping": 3.0}),
    "gemma3_linear": Case(
        "gemma3",
        {"tie_word_embeddings": False},
        GEMMA3
        | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base_swa": 5e3}
        | {"attention.sliding_window_pattern": 2},
    ),
    "gemma3_without_window": Case("gemma3", {}, {"rope.freq_base": 1e6}),
} | FAMILY_CASES
QUANTISED = ("llama_biased_untied", "qwen2", "qwen3", "phi", "phi3", "gemma2", "gemma3")
QUANTISED += ("olmo2", "granite", "glm4", "gpt_neox", "seed_oss")
FILES = [(name, F16) for name in CASES] + [(name, Q8_0) for name in QUANTISED]


def write(case: Case, file: Path, quantization: GGMLQuantizationType = F16) -> Path:
    return write_gguf(
        file,
        tiny(case.variant or case.architecture, **case.settings),
        case.architecture,
        case.metadata,
        tables=case.tables,
        quantization=quantization,
        change=case.change,
    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[list[float]]]]:
    """Return every file and llama.cpp's log-probabilities after the prompts."""
    place = tmp_path_factory.mktemp("files")
    files = [
        write(CASES[name], place / f"{name}.{quantization.name}.gguf", quantization)
        for name, quantization in FILES
    ]
    answered = llama_cpp([{"file": file, "prompts": PROMPTS} for file in files], place)
    return {
        file.stem: (file, answer["log_probs"]) for file, answer in zip(files, answered, strict=True)
    }


def log_probs(directory: Path) -> list[Tensor]:
    """Return the model's log-probabilities after the prompts."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
    return [row.log_softmax(-1) for row in logits]


@pytest.mark.parametrize(("name", "quantization"), FILES)
def test_conversion_computes_what_llama_cpp_computes(
    name: str, quantization: GGMLQuantizationType, answers: dict[str, Any], tmp_path: Path
) -> None:
    file, expected = answers[f"{name}.{quantization.name}"]
    for actual, row in zip(log_probs(convert_gguf(file, tmp_path / "out")), expected, strict=True):
        difference = actual - torch.tensor(row)
        if quantization == F16:
            assert difference.abs().max() <= F16_TOLERANCE
        else:
            assert difference.square().mean().sqrt() <= Q8_TOLERANCE * actual.std()


def test_converted_tensors_are_the_sources(tmp_path: Path) -> None:
    model = tiny("gemma3", tie_word_embeddings=False)
    file = write_gguf(tmp_path / "a.gguf", model, "gemma3", GEMMA3)
    back = AutoModelForCausalLM.from_pretrained(
        convert_gguf(file, tmp_path / "out"), dtype=torch.float32
    )
    expected = model.state_dict()
    assert back.state_dict().keys() == expected.keys()
    for name, tensor in back.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0.0)


def test_window_that_llama_cpp_ignores_is_kept(tmp_path: Path) -> None:
    # llama.cpp reads the window of Phi-3 and does not use it; the model was trained with it.
    file = write(Case("phi3", {}, PHI3 | {"attention.sliding_window": 9}), tmp_path / "a.gguf")
    assert AutoConfig.from_pretrained(convert_gguf(file, tmp_path / "out")).sliding_window == 9


def test_llama_with_a_window_becomes_a_mistral(tmp_path: Path) -> None:
    case = Case("llama", {"head_dim": 16}, LLAMA | {"attention.sliding_window": 7})
    config = AutoConfig.from_pretrained(
        convert_gguf(write(case, tmp_path / "a.gguf"), tmp_path / "out")
    )
    assert (config.model_type, config.sliding_window) == ("mistral", 7)


def test_settings_of_yarn_are_read(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    yarn |= {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0, "yarn_attn_factor": 1.5}
    metadata = {f"rope.scaling.{key}": value for key, value in yarn.items()}
    file = write(
        Case("qwen3", {"attention_bias": False, "head_dim": 16}, metadata), tmp_path / "a.gguf"
    )
    rope = AutoConfig.from_pretrained(convert_gguf(file, tmp_path / "out")).rope_parameters
    assert rope == {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.5,
    }


def test_yarn_log_multiplier_gives_the_attention_factor(tmp_path: Path) -> None:
    # DeepSeek's rule: magnitude(factor, 1) / magnitude(factor, multiplier), 1 for multiplier 1.
    yarn = {"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 1.0}
    metadata = {f"rope.scaling.{key}": value for key, value in yarn.items()}
    file = write(Case("llama", {"head_dim": 16}, LLAMA | metadata), tmp_path / "a.gguf")
    rope = AutoConfig.from_pretrained(convert_gguf(file, tmp_path / "out")).rope_parameters
    assert rope["attention_factor"] == 1.0


def missing(tensors: dict[str, Tensor]) -> None:
    del tensors["blk.1.ffn_down.weight"]


def one_bias(tensors: dict[str, Tensor]) -> None:
    del tensors["blk.1.attn_q.bias"]


def other_shape(tensors: dict[str, Tensor]) -> None:
    tensors["blk.1.attn_v.weight"] = tensors["blk.1.attn_v.weight"][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"a\.gguf: tensor blk\.1\.ffn_down\.weight is missing"),
        (one_bias, r"a\.gguf: tensor blk\.1\.attn_q\.bias is missing"),
        (other_shape, r"tensor blk\.1\.attn_v\.weight has shape \[31, 64\], expected \[32, 64\]"),
    ],
)
def test_missing_tensor_is_reported_before_anything_is_written(
    change: Any, message: str, tmp_path: Path
) -> None:
    file = write(Case("llama", BIASED, LLAMA, change=change), tmp_path / "a.gguf")
    with pytest.raises(BrokenCheckpointError, match=message):
        convert_gguf(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_tensor_without_a_place_is_rejected(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["blk.0.attn_output.bias"] = torch.zeros(64)

    file = write(Case("qwen2", {}, THETA, change=change), tmp_path / "a.gguf")
    with pytest.raises(UnsupportedArchitectureError, match=r"blk\.0\.attn_output\.bias"):
        convert_gguf(file, tmp_path / "out")
