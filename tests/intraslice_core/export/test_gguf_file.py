"""GGUF files agree with the model in llama.cpp, and wrong ones are detected before publication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, TokenType
from tokenizers import Regex, pre_tokenizers

from intraslice_core.checkpoints.gguf_reader import convert_gguf
from intraslice_core.config import GGUF_FILES, CompressionConfig
from intraslice_core.errors import ConfigurationError, VerificationError
from intraslice_core.evaluation import verification
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.pipeline import compress_model
from intraslice_core.publication import UNVERIFIED
from tests.intraslice_core.export.models import (
    MERGES,
    VOCAB_SIZE,
    compress_to_gguf,
    config,
    llama_with_merges,
    load,
    logits,
    merging_tokenizer,
    write_sentencepiece,
)
from tests.intraslice_core.tiny_models import tiny_checkpoint

BOTH = ("safetensors", "gguf-f16", "gguf-q8_0")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("target", "overrides"),
    [("stock", {}), ("adaptive", {"max_position_embeddings": 128})],
)
def test_llama_cpp_computes_the_same_as_the_model(
    target: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    dense = llama_with_merges(tmp_path / "dense", **overrides)
    settings = config(target, ratio=0.3, exports=BOTH)
    report = compress_model(str(dense), tmp_path / "out", settings)
    assert [check.files for check in report.verified] == list(BOTH)
    assert [check.loaded_by for check in report.verified][1:] == [("llama.cpp",), ("llama.cpp",)]
    for check in report.verified:
        assert 0.0 < check.max_abs_difference <= check.tolerance
    f16, q8 = (tmp_path / "out" / name for name in GGUF_FILES.values())
    assert f16.stat().st_size > q8.stat().st_size
    assert not report.warnings


def test_biases_and_an_output_head_are_written(tmp_path: Path) -> None:
    overrides = {"tie_word_embeddings": False, "max_position_embeddings": 512}
    dense = llama_with_merges(tmp_path / "dense", attention_bias=True, **overrides)
    report = compress_to_gguf(dense, tmp_path / "out", config("stock", ratio=0.3, exports=BOTH))
    assert not [warning for warning in report.warnings if warning != UNVERIFIED]


def test_biases_of_only_q_k_and_v_are_written(tmp_path: Path) -> None:
    # Qwen 2 has these biases; its file has architecture llama, because qwen2 has no rotary factors.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": VOCAB_SIZE, "head_dim": 16}
    more = {"use_sliding_window": False, "sliding_window": None, "max_position_embeddings": 1024}
    dense = tiny_checkpoint(tmp_path / "dense", "qwen2", **sizes, **more)
    merging_tokenizer().save_pretrained(dense)
    settings = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    compress_to_gguf(dense, tmp_path / "out", settings)
    names = {
        tensor.name for tensor in GGUFReader(tmp_path / "out" / GGUF_FILES["gguf-f16"]).tensors
    }
    assert {"blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"} <= names
    assert "blk.0.attn_output.bias" not in names


def test_llama_cpp_supports_layers_without_attention(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    model = load(dense)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-4)
    model.save_pretrained(dense)
    settings = config("adaptive", ratio=0.3, module_cap=1.0, exports=("safetensors", "gguf-f16"))
    report = compress_to_gguf(dense, tmp_path / "out", settings)
    assert [layer.num_attention_heads for layer in report.plan.layers][1:] == [0, 0]


def test_file_converted_back_equals_the_checkpoint(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    settings = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    compress_model(str(dense), tmp_path / "out", settings, verify=False)
    back = convert_gguf(tmp_path / "out" / GGUF_FILES["gguf-f16"], tmp_path / "back")
    torch.testing.assert_close(
        logits(load(back)), logits(load(tmp_path / "out")), atol=0.05, rtol=0.0
    )


def test_vocabulary_and_chat_template_are_written(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    settings = config("stock", ratio=0.3, exports=("safetensors", "gguf-q8_0"))
    compress_model(str(dense), tmp_path / "out", settings, verify=False)
    fields = GGUFReader(tmp_path / "out" / GGUF_FILES["gguf-q8_0"]).fields

    def at(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    tokens, token_types = at("ggml.tokens"), at("ggml.token_type")
    assert len(tokens) == VOCAB_SIZE
    assert tokens[-2:] == [f"[PAD{VOCAB_SIZE - 2}]", f"[PAD{VOCAB_SIZE - 1}]"]
    assert token_types[:4] == [TokenType.CONTROL] * 3 + [TokenType.NORMAL]
    assert token_types[-1] == TokenType.UNUSED
    assert at("ggml.merges") == [" ".join(pair) for pair in MERGES]
    assert at("ggml.pre") == "gpt-2"
    assert at("chat_template") == "{{ messages[0].content }}"
    assert at("ggml.eos_token_id") == 1


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            "dbrx",
        ),
    ],
)
def test_pre_tokenizer_is_recognised(pre_tokenizer: Any, name: str, tmp_path: Path) -> None:
    merging_tokenizer(pre_tokenizer).save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path, VOCAB_SIZE, adds_bos=False).pre_tokenizer == name


def test_unsupported_tokenizer_is_rejected_before_compression(
    tmp_path: Path,
) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    merging_tokenizer(pre_tokenizers.Whitespace()).save_pretrained(dense)
    settings = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(
        ConfigurationError, match=r"llama\.cpp does not support byte-level tokenizers"
    ) as rejected:
        compress_model(str(dense), tmp_path / "out", settings)
    assert rejected.value.field == "compression.exports"
    assert not (tmp_path / "out").exists()


def test_tokenizer_known_by_its_sentencepiece_model_alone_is_exported(tmp_path: Path) -> None:
    # Verification compares the tokens of every prompt with those of llama.cpp.
    dense = llama_with_merges(tmp_path / "dense", vocab_size=512)
    for file in dense.glob("tokenizer*"):
        file.unlink()
    texts = (Path(__file__).read_text(), "Ein Satz auf Deutsch, une phrase en français")
    write_sentencepiece(dense, "LlamaTokenizer", texts, vocab_size=512)
    compress_to_gguf(
        dense,
        tmp_path / "out",
        config("stock", ratio=0.3, exports=("safetensors", "gguf-f16")),
    )


def test_gguf_export_of_research_models_is_rejected(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    settings = config("research", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(ConfigurationError, match="target research has no GGUF export") as rejected:
        compress_model(str(dense), tmp_path / "out", settings)
    assert rejected.value.field == "compression.exports"


@pytest.mark.parametrize("exports", [(), ("gguf-f16",), ("safetensors", "safetensors")])
def test_exports_contain_safetensors_and_no_duplicates(exports: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="exports"):
        CompressionConfig.model_validate({"target": "stock", "exports": exports})


def test_damaged_file_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    write_reference = verification.write_reference

    def write_and_damage(directory: Path, *rest: Any) -> None:
        write_reference(directory, *rest)
        file = directory / GGUF_FILES["gguf-f16"]
        content = bytearray(file.read_bytes())
        content[-400] ^= 0x40
        file.write_bytes(content)

    monkeypatch.setattr("intraslice_core.publication.write_reference", write_and_damage)
    settings = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(VerificationError, match=r"files changed .*: model-f16\.gguf"):
        compress_model(str(dense), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_file_that_computes_other_logits_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A common mistake: rows of k in the order of transformers load without an error.
    monkeypatch.setattr("intraslice_core.export.gguf._KEY", ())
    dense = llama_with_merges(tmp_path / "dense")
    settings = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(VerificationError, match="log-probabilities differ"):
        compress_model(str(dense), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_files_that_were_not_loaded_are_named_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intraslice_core.publication.has_llama_cpp", lambda: False)
    dense = llama_with_merges(tmp_path / "dense")
    settings = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    report = compress_model(str(dense), tmp_path / "out", settings)
    (warning,) = report.warnings
    assert warning.startswith("model-f16.gguf was not verified")
