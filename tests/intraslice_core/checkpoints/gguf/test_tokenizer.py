"""Tokenizers of GGUF files give llama.cpp's tokens; what cannot be read is rejected by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from intraslice_core.checkpoints.gguf.parts import read_gguf_header
from intraslice_core.checkpoints.gguf.pre_tokenizers import SPLITTING_RULES
from intraslice_core.checkpoints.gguf.tokenizer import save_tokenizer, special_tokens
from intraslice_core.checkpoints.gguf.vocabulary import read_vocabulary
from intraslice_core.checkpoints.gguf_reader import convert_gguf
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError
from tests.intraslice_core.checkpoints.gguf.files import (
    ARCHITECTURES,
    converted,
    finish,
    llama_cpp,
    tiny,
    write_vocabulary,
)

TEXTS = [
    "Hello world",
    " leading  and   many    spaces ",
    "It's we'LL they'Re don't I'm you'd",
    "1 12 123 1234 12345678 3.14 1,000,000",
    "\n\n\n \n\t\ttabs\r\n  \n x",
    "snake_case CamelCase HTTPServer foo(bar)[0]; // a/b/\n",
    "naïve café Ünïcödé straße ŒUVRE",
    "日本語のテキスト 한국어 Привет мир",
    "🙂👍🏽 emoji €100 ½ ²³",
    "!!! ... --- \"quoted\" 'single' <tag> #hash $5 50%",
    "a\u0301e\u0301 combining",
    "def f(x):\n    return x**2\n\n",
]
ROWS = 700


def crossing_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose merges cross words, digits and lines, so that splits matter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 4,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    word = next(word for word in ("Ġworld", "Ġleading", "Ġspaces") if word not in vocabulary)
    vocabulary[word] = len(vocabulary)  # no merge gives it: only rules that ignore merges use it
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def model_file(file: Path, write: Callable[[gguf.GGUFWriter], None], rows: int = ROWS) -> Path:
    """Write a tiny Llama with a vocabulary."""
    writer = gguf.GGUFWriter(file, "llama")
    model = tiny("llama", num_hidden_layers=1, hidden_size=32, intermediate_size=32, head_dim=8)
    model.resize_token_embeddings(rows, mean_resizing=False)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    write(writer)
    for name, tensor in converted(model, ARCHITECTURES["llama"]).items():
        writer.add_tensor(name, tensor.numpy())
    return finish(writer, file)


def byte_level(pre: str, **flags: Any) -> Callable[[gguf.GGUFWriter], None]:
    def write(writer: gguf.GGUFWriter) -> None:
        write_vocabulary(writer, crossing_tokenizer(), ROWS, pre=pre)
        _flags(writer, flags)

    return write


def _flags(writer: gguf.GGUFWriter, flags: dict[str, Any]) -> None:
    for name, value in flags.items():
        getattr(writer, f"add_{name}")(value)


PIECES = ["▁", *"abcdefghijklmnopqrstuvwxyz", *"THIWC0123456789.,'", "\n"]
WORDS = [("▁the", -3.0), ("he", -1.0), ("th", -2.0), ("ll", -4.0), ("▁w", -5.0), ("or", -6.0)]
WORDS += [("ello", -7.0), ("lo", -6.5), ("▁▁", -8.0), ("12", -9.0), ("123", -8.5), ("ld", -10.0)]
WORDS += [("world", -20.0), ("▁world", -21.0), ("wor", -9.5), ("an", -11.0), ("and", -10.5)]


def sentencepiece(**flags: Any) -> Callable[[gguf.GGUFWriter], None]:
    """Write a vocabulary with scores, byte fallback, and user-defined spaces as Gemma's."""

    def write(writer: gguf.GGUFWriter) -> None:
        tokens = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
        tokens += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
        tokens += [(piece, -1000.0 - number, 1) for number, piece in enumerate(PIECES)]
        tokens += [(word, score, 1) for word, score in WORDS]
        tokens += [("    ", -1000.0, 4), ("<tag>", -1000.0, 4), ("<turn>", -1000.0, 3)]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([token for token, _, _ in tokens])
        writer.add_token_scores([score for _, score, _ in tokens])
        writer.add_token_types([kind for _, _, kind in tokens])
        _flags(writer, flags)

    return write


SENTENCEPIECE_ROWS = 3 + 256 + len(PIECES) + len(WORDS) + 3
RULES = sorted({rule: name for name, rule in sorted(SPLITTING_RULES.items())}.values())
"""One name of each rule."""
MODELS: dict[str, tuple[Callable[[gguf.GGUFWriter], None], int]] = {
    **{name: (byte_level(name), ROWS) for name in RULES},
    "without_bos": (byte_level("llama-bpe", add_bos_token=False), ROWS),
    "with_eos": (byte_level("gpt-2", add_bos_token=True, add_eos_token=True), ROWS),
    "sentencepiece": (sentencepiece(), SENTENCEPIECE_ROWS),
    "gemma": (sentencepiece(add_space_prefix=False, add_bos_token=True), SENTENCEPIECE_ROWS),
    "sentencepiece_without_bos": (sentencepiece(add_bos_token=False), SENTENCEPIECE_ROWS),
}
SPECIAL_TEXTS = ["the <tag>and<turn> world", "<turn>the</s>"]
APPROXIMATED = (SPLITTING_RULES["gpt-4o"], SPLITTING_RULES["tekken"])
"""Rules that tell upper from lower case.

llama.cpp's engine has no classes for them: it looks at ASCII letters only and splits combining
marks off. The converted tokenizer has the original expression.
"""
NON_ASCII = (TEXTS[6], TEXTS[10])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[list[int]]]]:
    """Return every file and llama.cpp's tokens of the texts."""
    place = tmp_path_factory.mktemp("files")
    files = [model_file(place / f"{name}.gguf", *model) for name, model in MODELS.items()]
    answered = llama_cpp([{"file": file, "texts": TEXTS + SPECIAL_TEXTS} for file in files], place)
    return {
        file.stem: (file, answer["tokens"]) for file, answer in zip(files, answered, strict=True)
    }


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_llama_cpp(name: str, answers: dict[str, Any], tmp_path: Path) -> None:
    file, expected = answers[name]
    tokenizer = AutoTokenizer.from_pretrained(convert_gguf(file, tmp_path / "out"))
    for text, tokens in zip(TEXTS + SPECIAL_TEXTS, expected, strict=True):
        if text in NON_ASCII and SPLITTING_RULES.get(name) in APPROXIMATED:
            continue
        assert tokenizer(text).input_ids == tokens, text


def test_splitting_rules_give_different_tokens(answers: dict[str, Any]) -> None:
    # Otherwise the comparison above would accept a wrong rule.
    distinct = {str(answers[name][1]) for name in RULES}
    assert len(distinct) == len(RULES)


def converted_tokenizer(write: Any, rows: int, place: Path) -> Path:
    return convert_gguf(model_file(place / "a.gguf", write, rows), place / "out")


def test_special_tokens_and_templates_are_kept(tmp_path: Path) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        byte_level("gpt-2", eot_token_id=2)(writer)
        templates = {"default": "A", "tool_use": "B"}
        writer.add_chat_template([{"name": n, "template": t} for n, t in templates.items()])

    header = read_gguf_header(model_file(tmp_path / "a.gguf", write))
    vocabulary = read_vocabulary(header, rows=ROWS)
    save_tokenizer(vocabulary, special_tokens(vocabulary), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert special == ("<s>", "</s>", "<pad>")
    assert tokenizer.chat_template == {"default": "A", "tool_use": "B"}
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [1, 2]
    assert tokenizer.decode(tokenizer(TEXTS[4]).input_ids) == TEXTS[4]


def test_rows_without_a_token_are_no_tokens(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        converted_tokenizer(byte_level("gpt-2"), ROWS, tmp_path)
    )
    assert len(tokenizer) == len(crossing_tokenizer()) < ROWS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_pre": "new-bpe"}, r"a\.gguf: tokenizer\.ggml\.pre 'new-bpe' is not supported"),
        ({"tokenizer_pre": "default"}, r"tokenizer\.ggml\.pre 'default' is not supported"),
        ({"tokenizer_model": "t5"}, r"tokenizer\.ggml\.model 't5' is not supported"),
    ],
)
def test_unknown_tokenizer_is_rejected_by_name(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=message):
        converted_tokenizer(changed(change), ROWS, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_merges": ["a b", "zz q"]}, r"merge 0 \('a b'\).*needs the token 'ab'"),
        ({"token_merges": ["ab"]}, r"merge 0 \('ab'\) of tokenizer\.ggml\.merges"),
        ({"bos_token_id": 10_000}, r"bos_token_id 10000 is not one of 700 tokens"),
        ({"token_list": ["a"] * ROWS}, r"token 'a' occurs twice"),
        ({"token_list": ["a", "b"]}, r"tokens has 2 items for 700 rows"),
    ],
)
def test_broken_vocabulary_is_reported(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BrokenCheckpointError, match=message):
        converted_tokenizer(changed(change), ROWS, tmp_path)
    assert not (tmp_path / "out").exists()


def changed(change: dict[str, Any]) -> Callable[[gguf.GGUFWriter], None]:
    """Write a vocabulary with other values of some keys."""
    keys = {
        "tokenizer_pre": "pre",
        "tokenizer_model": "model",
        "token_merges": "merges",
        "token_list": "tokens",
    }

    def write(writer: gguf.GGUFWriter) -> None:
        byte_level("gpt-2")(writer)
        for name in change:
            del writer.kv_data[0][f"tokenizer.ggml.{keys.get(name, name)}"]
        _flags(writer, change)

    return write
