"""GGUF files: what llama.cpp reads of them, and that a wrong one is noticed before publication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from intraslice_core.checkpoints.gguf_conversion import convert_gguf
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import ConfigurationError, VerificationError
from intraslice_core.evaluation import verification
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.pipeline import compress_model
from intraslice_core.publication import GGUF_FILES
from tests.intraslice_core.export.models import (
    MERGES,
    VOCAB_SIZE,
    config,
    llama_with_merges,
    load,
    logits,
    merging_tokenizer,
)
from tests.intraslice_core.tiny_models import tiny_checkpoint, tiny_llama

BOTH = ("safetensors", "gguf-f16", "gguf-q8_0")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("target", "overrides"),
    [
        ("stock", {}),
        ("stock", {"attention_bias": True, "tie_word_embeddings": False}),
        ("adaptive", {}),
    ],
)
def test_llama_cpp_answers_as_the_model_does(
    target: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    dense = llama_with_merges(tmp_path / "dense", **overrides)
    asked = config(target, ratio=0.3, exports=BOTH)
    report = compress_model(str(dense), tmp_path / "out", asked)
    assert [one.files for one in report.verified] == list(BOTH)
    assert [one.loaded_by for one in report.verified][1:] == [("llama.cpp",), ("llama.cpp",)]
    for one in report.verified:
        assert 0.0 < one.max_abs_difference <= one.tolerance
    f16, q8 = (tmp_path / "out" / name for name in GGUF_FILES.values())
    assert f16.stat().st_size > q8.stat().st_size
    assert not report.warnings


def test_biases_of_queries_keys_and_values_alone_come_along(tmp_path: Path) -> None:
    # Qwen 2's, in a file of architecture llama: its own has no rotary factors.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": VOCAB_SIZE, "head_dim": 16}
    more = {"use_sliding_window": False, "sliding_window": None, "max_position_embeddings": 1024}
    dense = tiny_checkpoint(tmp_path / "dense", "qwen2", **sizes, **more)
    merging_tokenizer().save_pretrained(dense)
    asked = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    report = compress_model(str(dense), tmp_path / "out", asked)
    assert report.verified[1].loaded_by == ("llama.cpp",)
    names = {one.name for one in GGUFReader(tmp_path / "out" / GGUF_FILES["gguf-f16"]).tensors}
    assert {"blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"} <= names
    assert "blk.0.attn_output.bias" not in names


def test_an_attention_that_is_gone_is_gone_in_llama_cpp_too(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    model = load(dense)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-4)
    model.save_pretrained(dense)
    asked = config("adaptive", ratio=0.3, module_cap=1.0, exports=("safetensors", "gguf-f16"))
    report = compress_model(str(dense), tmp_path / "out", asked)
    assert [layer.num_attention_heads for layer in report.plan.layers][1:] == [0, 0]
    assert report.verified[1].loaded_by == ("llama.cpp",)


def test_a_file_read_back_is_the_checkpoint_it_was_made_from(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    asked = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    compress_model(str(dense), tmp_path / "out", asked)
    back = convert_gguf(tmp_path / "out" / GGUF_FILES["gguf-f16"], tmp_path / "back")
    torch.testing.assert_close(
        logits(load(back)), logits(load(tmp_path / "out")), atol=0.05, rtol=0.0
    )


def test_tokens_kinds_and_the_chat_template_come_along(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    asked = config("stock", ratio=0.3, exports=("safetensors", "gguf-q8_0"))
    compress_model(str(dense), tmp_path / "out", asked)
    fields = GGUFReader(tmp_path / "out" / GGUF_FILES["gguf-q8_0"]).fields

    def at(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    tokens, kinds = at("ggml.tokens"), at("ggml.token_type")
    assert len(tokens) == VOCAB_SIZE
    assert tokens[-2:] == [f"[PAD{VOCAB_SIZE - 2}]", f"[PAD{VOCAB_SIZE - 1}]"]
    assert kinds[:4] == [TokenType.CONTROL] * 3 + [TokenType.NORMAL]
    assert kinds[-1] == TokenType.UNUSED
    assert at("ggml.merges") == [" ".join(pair) for pair in MERGES]
    assert at("ggml.pre") == "gpt-2"
    assert at("chat_template") == "{{ messages[0].content }}"
    assert at("ggml.eos_token_id") == 1


@pytest.mark.parametrize(
    ("splitting", "name"),
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
            "llama-bpe",
        ),
    ],
)
def test_the_splitting_rule_has_llama_cpps_name(splitting: Any, name: str, tmp_path: Path) -> None:
    merging_tokenizer(splitting).save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path, VOCAB_SIZE, adds_bos=False).splitting == name


def test_a_tokenizer_with_no_name_in_llama_cpp_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    merging_tokenizer(pre_tokenizers.Whitespace()).save_pretrained(dense)
    asked = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(ConfigurationError, match=r"no name in llama\.cpp") as refused:
        compress_model(str(dense), tmp_path / "out", asked)
    assert refused.value.field == "compression.exports"
    assert not (tmp_path / "out").exists()


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: pieces with spaces in them, and bytes to fall back on."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "t", "h", "e", "a", "th", "the", "▁the", "▁a"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_a_sentencepiece_tokenizer_is_read_alike(tmp_path: Path) -> None:
    # llama.cpp itself compares: verification asks it for the tokens of every prompt.
    tokenizer = sentencepiece_tokenizer()
    dense = tiny_llama(
        tmp_path / "dense", hidden_size=64, vocab_size=len(tokenizer), max_position_embeddings=1024
    )
    for old in dense.glob("tokenizer*"):
        old.unlink()
    tokenizer.save_pretrained(dense)
    asked = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    report = compress_model(str(dense), tmp_path / "out", asked)
    assert report.verified[1].loaded_by == ("llama.cpp",)


def test_research_models_have_no_gguf(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    asked = config("research", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(ConfigurationError, match="runs no models of target research") as refused:
        compress_model(str(dense), tmp_path / "out", asked)
    assert refused.value.field == "compression.exports"


@pytest.mark.parametrize("exports", [(), ("gguf-f16",), ("safetensors", "safetensors")])
def test_exports_name_safetensors_and_nothing_twice(exports: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="exports"):
        CompressionConfig.model_validate({"target": "stock", "exports": exports})


def test_a_damaged_file_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    written = verification.write_reference

    def write_and_damage(directory: Path, *rest: Any) -> None:
        written(directory, *rest)
        file = directory / GGUF_FILES["gguf-f16"]
        content = bytearray(file.read_bytes())
        content[-400] ^= 0x40
        file.write_bytes(content)

    monkeypatch.setattr("intraslice_core.publication.write_reference", write_and_damage)
    asked = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(VerificationError, match=r"files changed .*: model-f16\.gguf"):
        compress_model(str(dense), tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()


def test_a_file_that_computes_something_else_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of q and k left as transformers has them: the classic mistake, which loads and talks.
    monkeypatch.setattr("intraslice_core.export.gguf._KEY", ())
    dense = llama_with_merges(tmp_path / "dense")
    asked = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(VerificationError, match="log-probabilities differ"):
        compress_model(str(dense), tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()
