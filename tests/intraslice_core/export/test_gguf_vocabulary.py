"""The tokenizer of a GGUF file gives the token ids of the checkpoint's tokenizer."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from intraslice_core.errors import ConfigurationError
from intraslice_core.evaluation import llama_cpp_process
from intraslice_core.export.gguf import write_gguf
from intraslice_core.export.gguf_layout import family_layout
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.families.adapter import family_for
from tests.intraslice_core.export.models import write_sentencepiece

TEXTS = (
    "Hello world, it's John's book; I'VE said we'LL don't!",
    "12345678 1 22 333 4444 3.14159, 10,000,000",
    "   leading and    multiple   spaces  \n\n new\r\nlines \t tabs\n \n",
    "Été übung straßE ПРИВЕТ Привет мир ΑΒΓ αβγ ǅungla",
    "中文字符测试。日本語テスト、カタカナ 한국어 테스트",
    "हिन्दी में पाठ ภาษาไทย اللغة العربية",
    "def f(x):\n    return x**2 + y_1 - z/3 // 4\n\t# comment //// ",
    "http://www.example.com/path?q=1&b=2#frag user@mail.org",
    "emoji 😀👍🏽 👩\u200d👩\u200d👧 ™ © € № ½ ² ٣٤ Ⅷ",
    "CamelCaseWord HTTPServer iPhone XMLHttpRequest aB Ab ABc",
    "'s 't 're 'S 'Ll \u2019s \u2018quoted\u2019 \"x\" (y) [z] {w} <a> |b|",
    "...!!! ??? --- === /// \\\\ //x\n///\r\n",
    "a\u00a0b\u2003c\u3000d zero\u200dwidth tail   ",
    "\n\n\n",
    "1a2b3c a1 1st 2nd foo  bar   baz\n\n\n   end",
    "a<|turn|>b <|turn|> c<s>d</s>",
)
APPROXIMATE_TEXTS = tuple(text for text in TEXTS if "हि" not in text)
"""Texts without combining marks."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
LOWER_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+"
UPPER_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*"
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def splits(*regexes: str) -> Any:
    steps = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in regexes]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*steps, byte_level])


def words_and_digits(digits: str) -> str:
    return (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{SPACES}"
    )


RULES: dict[str, Any] = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), GPT2]),
    "dbrx": splits(words_and_digits(r"\p{N}{1,3}")),
    "llama-bpe": splits(words_and_digits(r"\p{N}{1,3}")),
    "qwen2": splits(words_and_digits(r"\p{N}")),
    "qwen35": splits(
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{SPACES}"
    ),
    "seed-coder": splits(
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}"
        rf"| ?[^\s\p{{L}}\p{{N}}\r\n]+{SPACES}"
    ),
    "tekken": splits(
        rf"{LOWER_WORDS}|{UPPER_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{SPACES}"
    ),
    "gpt-4o": splits(
        rf"{LOWER_WORDS}{CONTRACTIONS}?|{UPPER_WORDS}{CONTRACTIONS}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{SPACES}"
    ),
    "deepseek-v3": splits(
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ\u30a0-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^" + "\r\n"
        r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[" + "\r\n" + r"]*|\s*[" + "\r\n"
        r"]+|\s+(?!\S)|\s+",
    ),
    "deepseek-coder": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{P}+"), "isolated"),
            pre_tokenizers.Split(Regex("[一-龥ࠀ-一가-\ud7ff]+"), "isolated"),
            pre_tokenizers.Digits(True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "superbpe": splits(r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
}
WHOLE_WORDS = ("llama-bpe", "tekken")
UNMERGED = "Ġzyxq"
"""Word that no merge produces."""
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<|turn|>"]}


def byte_level_model() -> dict[str, Any]:
    """Return a BPE model whose merges cross words, so that every split changes the tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS[:-1] * 20, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def write_byte_level(directory: Path, name: str, model: Mapping[str, Any]) -> None:
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = dict(model["vocab"]) | {UNMERGED: len(model["vocab"])}
    whole = name in WHOLE_WORDS
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole))
    tokenizer.pre_tokenizer = RULES[name]
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS).save_pretrained(directory)


def write_model(directory: Path) -> Path:
    """Write a one-layer model with the directory's tokenizer as GGUF."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(settings).save_pretrained(directory)
    adds_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    vocabulary = read_vocabulary(directory, settings.vocab_size, adds_bos=adds_bos)
    layout = family_layout(family_for(settings), settings)
    write_gguf(directory / "model.gguf", directory, layout, vocabulary, "gguf-f16")
    return directory / "model.gguf"


PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import llama_cpp_process as process
files, texts = json.load(sys.stdin)
servers = map(process.serve, files)
ids = [[process.tokens_of(server, text) for text in texts] for server in servers]
print("IDS" + json.dumps(ids))
"""


def llama_cpp_tokens(files: list[Path], texts: tuple[str, ...]) -> list[list[list[int]]]:
    """Return llama.cpp's token ids by file and text, from one process."""
    folder = str(Path(llama_cpp_process.__file__).parent)
    request = json.dumps([[str(file) for file in files], texts])
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder], input=request, capture_output=True, text=True
    )
    (answer,) = (line for line in process.stdout.splitlines() if line.startswith("IDS"))
    ids: list[list[list[int]]] = json.loads(answer.removeprefix("IDS"))
    return ids


def test_byte_level_tokenizers_give_the_same_tokens(tmp_path: Path) -> None:
    model = byte_level_model()
    for name in RULES:
        write_byte_level(tmp_path / name, name, model)
    texts = (*TEXTS, f"a {UNMERGED[1:]}")
    files = [write_model(tmp_path / name) for name in RULES]
    for name, by_text in zip(RULES, llama_cpp_tokens(files, texts), strict=True):
        vocabulary = read_vocabulary(tmp_path / name, 2000, adds_bos=False)
        assert vocabulary.pre_tokenizer == name
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        for text, ids in zip(texts, by_text, strict=True):
            if vocabulary.caveat is None or text in APPROXIMATE_TEXTS:
                assert ids == tokenizer(text)["input_ids"], (name, text)


def test_sentencepiece_models_give_the_same_tokens(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "llama", "LlamaTokenizer", TEXTS[:-1])
    write_sentencepiece(
        tmp_path / "gemma",
        "GemmaTokenizer",
        TEXTS[:-1],
        add_dummy_prefix=False,
        user_defined_symbols=["\n\n", "▁▁▁▁"],
    )
    names = ("llama", "gemma")
    files = [write_model(tmp_path / name) for name in names]
    assert not list(tmp_path.glob("*/tokenizer.json"))
    for name, by_text in zip(names, llama_cpp_tokens(files, TEXTS), strict=True):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        own = sentencepiece.SentencePieceProcessor(model_file=f"{tmp_path}/{name}/tokenizer.model")
        for text, ids in zip(TEXTS, by_text, strict=True):
            expected = tokenizer(text)["input_ids"]
            if name == "llama" and text.startswith(" "):
                # transformers adds no further space to texts that begin with one.
                expected = [own.bos_id(), *own.encode(text)]
            assert ids == expected, (name, text)
    assert read_vocabulary(tmp_path / "llama", 2000, adds_bos=True).space_prefix
    assert not read_vocabulary(tmp_path / "gemma", 2000, adds_bos=True).space_prefix


def test_special_tokens_of_phi3_swallow_spaces(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "phi", "LlamaTokenizer", TEXTS[:-1])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "phi")
    names = ("</s>", "<|user|>", "<|end|>", "<|assistant|>")
    tokens: list[str | AddedToken]
    tokens = [AddedToken(name, rstrip=True, special=True, normalized=False) for name in names]
    tokenizer.add_tokens([*tokens, AddedToken("<|endoftext|>", special=True, normalized=False)])
    # Phi 3's tokenizer.json puts a space before the text after each special token.
    backend = tokenizer.backend_tokenizer
    prefix, spaces = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([prefix, spaces])
    backend.pre_tokenizer = None
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(
        tmp_path / "phi"
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "phi")
    texts = ("<|user|>\n Hello there<|end|>\n<|assistant|> I <|endoftext|> am",)
    (by_text,) = llama_cpp_tokens([write_model(tmp_path / "phi")], texts)
    assert by_text == [tokenizer(text)["input_ids"] for text in texts]
    vocabulary = read_vocabulary(tmp_path / "phi", 2000, adds_bos=True)
    assert vocabulary.caveat is None
    partly = dataclasses.replace(vocabulary, stripping_tokens=frozenset({"<|end|>"}))
    assert partly.caveat is not None
    assert "<|end|>" in partly.caveat


def test_unigram_models_are_rejected(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "unigram", "T5Tokenizer", TEXTS[:-1], model_type="unigram")
    with pytest.raises(ConfigurationError, match="does not support Unigram tokenizers") as rejected:
        read_vocabulary(tmp_path / "unigram", 2000, adds_bos=True)
    assert rejected.value.field == "compression.exports"


def test_tokenizers_that_change_characters_are_rejected(tmp_path: Path) -> None:
    write_byte_level(tmp_path, "gpt-2", byte_level_model())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigurationError, match=r"normalise texts by .*Lowercase"):
        read_vocabulary(tmp_path, 2000, adds_bos=False)


def test_directory_without_a_tokenizer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="transformers cannot convert"):
        read_vocabulary(tmp_path, 2000, adds_bos=False)


def test_tokens_beyond_the_embedding_are_rejected(tmp_path: Path) -> None:
    write_byte_level(tmp_path, "gpt-2", byte_level_model())
    with pytest.raises(
        ConfigurationError, match=r"beyond the embedding's 300 rows, such as '<\|turn"
    ):
        read_vocabulary(tmp_path, 300, adds_bos=False)
