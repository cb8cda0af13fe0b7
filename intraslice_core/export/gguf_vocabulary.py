"""GGUF vocabulary of a fast tokenizer: tokens, token types, scores and the pre-tokenizer.

llama.cpp supports two kinds of BPE. Byte-level BPE has merges and the name of a pre-tokenizer
(`tokenizer.ggml.pre`), which is recognised by its splitting rule. BPE with byte fallback (Llama 2,
Mistral) is that of SentencePiece, where scores determine the order of merges; merges in order of
their rank have the scores 0, -1, -2, …
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from gguf import GGUFWriter, SpecialVocab, TokenType

from intraslice_core.errors import ConfigurationError

TOKENIZER_FILE = "tokenizer.json"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASES = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*|"
)
_PRE_TOKENIZERS: Mapping[str, str] = MappingProxyType(
    {
        rf"{_WORDS}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
        rf"{_WORDS}\p{{N}}{_REST}": "qwen2",
        _CASES + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
    }
)
"""Names of pre-tokenizers in llama.cpp by their regular expressions."""
_NO_SCORE = -1000.0
"""Score of tokens that no merge produces; they match as a whole or as a byte."""


@dataclass(frozen=True, kw_only=True)
class GgufVocabulary:
    """Tokenizer as stored in a GGUF file."""

    model: Literal["gpt2", "llama"]
    pre_tokenizer: str
    """Name of the pre-tokenizer in llama.cpp."""
    tokens: tuple[str, ...]
    """Text of every token, one per row of the embedding."""
    token_types: tuple[TokenType, ...]
    scores: tuple[float, ...] | None
    special: SpecialVocab
    """Merges, special tokens and the chat template."""
    space_prefix: bool

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the vocabulary to a GGUF file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.token_types))
        if self.scores is not None:
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.space_prefix)
        self.special.add_to_gguf(writer, quiet=True)


def read_vocabulary(directory: Path, vocab_size: int, *, adds_bos: bool) -> GgufVocabulary:
    """Return the vocabulary of a checkpoint's tokenizer.

    Args:
        directory: holds `tokenizer.json` and, if there is one, the chat template.
        vocab_size: rows of the embedding; ids beyond those of the tokenizer are unused tokens.
        adds_bos: True if the tokenizer begins every text with the BOS token.

    Raises:
        ConfigurationError: if llama.cpp does not support the tokenizer.
    """
    facts = _read(directory / TOKENIZER_FILE)
    model = facts["model"]
    if model.get("type") != "BPE":
        raise _unsupported(f"{model.get('type')} tokenizers")
    sentencepiece = bool(model.get("byte_fallback"))
    tokens, token_types = _tokens(facts, vocab_size)
    special = SpecialVocab(directory, load_merges=not sentencepiece, n_vocab=vocab_size)
    special.add_special_token = {**special.add_special_token, "bos": adds_bos}
    return GgufVocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre_tokenizer="default" if sentencepiece else _pre_tokenizer(facts.get("pre_tokenizer")),
        tokens=tuple(tokens),
        token_types=tuple(token_types),
        scores=_scores(model, tokens) if sentencepiece else None,
        special=special,
        space_prefix=_has_space_prefix(facts),
    )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise _unsupported(f"tokenizers without {TOKENIZER_FILE}")
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return facts


def _unsupported(tokenizers: str) -> ConfigurationError:
    return ConfigurationError(
        f"the tokenizer cannot be exported to GGUF: llama.cpp does not support {tokenizers}",
        field="compression.exports",
        hint="remove the gguf exports",
    )


def _tokens(facts: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[TokenType]]:
    """Return text and type of every id; ids without a token are unused."""
    names = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [TokenType.UNUSED] * vocab_size
    model = facts["model"]
    for text, number in model["vocab"].items():
        names[number], kinds[number] = text, TokenType.NORMAL
        if model.get("byte_fallback") and _is_byte(text):
            kinds[number] = TokenType.BYTE
        elif text == model.get("unk_token") and model.get("byte_fallback"):
            kinds[number] = TokenType.UNKNOWN
    for added in facts.get("added_tokens") or ():
        names[added["id"]] = added["content"]
        if kinds[added["id"]] is not TokenType.UNKNOWN:
            control = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
            kinds[added["id"]] = control
    return names, kinds


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(model: Mapping[str, Any], tokens: list[str]) -> tuple[float, ...]:
    """Return for each token the negated rank of the first merge that produces it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(first + second, rank)
    return tuple(-float(ranks[token]) if token in ranks else _NO_SCORE for token in tokens)


def _pre_tokenizer(rule: Mapping[str, Any] | None) -> str:
    """Return the name in llama.cpp of a byte-level tokenizer's splitting rule.

    Raises:
        ConfigurationError: if llama.cpp does not support the rule.
    """
    steps = rule.get("pretokenizers", [rule]) if rule else []
    before = [step for step in steps if step["type"] != "ByteLevel"]
    by_words = any(step["type"] == "ByteLevel" and step.get("use_regex", True) for step in steps)
    if by_words and not before:
        return "gpt-2"
    if by_words and [step["type"] for step in before] == ["Digits"]:
        if before[0].get("individual_digits"):
            return "smollm"
    elif len(before) == 1 and before[0]["type"] == "Split":
        regex = before[0].get("pattern", {}).get("Regex", "")
        if regex in _PRE_TOKENIZERS:
            return _PRE_TOKENIZERS[regex]
    raise _unsupported(f"byte-level tokenizers that split by {json.dumps(rule)[:200]}")


def _has_space_prefix(facts: Mapping[str, Any]) -> bool:
    """Return True if the tokenizer adds a space before the first word of a text."""
    steps: list[dict[str, Any]] = []
    for part in ("normalizer", "pre_tokenizer"):
        whole = facts.get(part) or {}
        steps += whole.get("normalizers") or whole.get("pretokenizers") or [whole]
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
