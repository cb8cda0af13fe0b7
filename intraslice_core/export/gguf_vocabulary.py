"""A fast tokenizer in llama.cpp's terms: tokens, their kinds, scores, and how text is split.

llama.cpp knows two kinds of BPE. Byte-level ones come with merges and the name of a splitting
rule (`tokenizer.ggml.pre`), which is told by the rule itself. Those with byte fallback (Llama 2,
Mistral) are SentencePiece's, where a score says which pair merges first; merges in order of rank
have the scores 0, -1, -2, …
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
_BY_REGEX: Mapping[str, str] = MappingProxyType(
    {
        rf"{_WORDS}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
        rf"{_WORDS}\p{{N}}{_REST}": "qwen2",
        _CASES + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
    }
)
_NO_SCORE = -1000.0
"""Of tokens that no merge makes; they are found as a whole, or as a byte."""


@dataclass(frozen=True, kw_only=True)
class GgufVocabulary:
    """What a GGUF file says of the tokenizer."""

    model: Literal["gpt2", "llama"]
    splitting: str
    """llama.cpp's name of the rule."""
    tokens: tuple[str, ...]
    """As many as the model has embeddings."""
    kinds: tuple[TokenType, ...]
    scores: tuple[float, ...] | None
    special: SpecialVocab
    """Merges, special tokens and the chat template."""
    space_prefix: bool

    def add_to(self, writer: GGUFWriter) -> None:
        """Write all of it."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.splitting)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.kinds))
        if self.scores is not None:
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.space_prefix)
        self.special.add_to_gguf(writer, quiet=True)


def read_vocabulary(directory: Path, vocab_size: int, *, adds_bos: bool) -> GgufVocabulary:
    """The tokenizer of a checkpoint.

    Args:
        directory: with `tokenizer.json`, and a chat template where there is one.
        vocab_size: rows of the embedding; ids beyond the tokenizer's are unused tokens.
        adds_bos: whether the tokenizer begins every text with its first special token.

    Raises:
        ConfigurationError: if llama.cpp has no name for such a tokenizer.
    """
    facts = _read(directory / TOKENIZER_FILE)
    model = facts["model"]
    if model.get("type") != "BPE":
        raise _unknown(f"{model.get('type')} tokenizers")
    pieces = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(facts, vocab_size)
    special = SpecialVocab(directory, load_merges=not pieces, n_vocab=vocab_size)
    special.add_special_token = {**special.add_special_token, "bos": adds_bos}
    return GgufVocabulary(
        model="llama" if pieces else "gpt2",
        splitting="default" if pieces else _splitting(facts.get("pre_tokenizer")),
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        scores=_scores(model, tokens) if pieces else None,
        special=special,
        space_prefix=_has_space_prefix(facts),
    )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise _unknown(f"tokenizers without {TOKENIZER_FILE}")
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return facts


def _unknown(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"a GGUF file cannot hold this tokenizer: {what} have no name in llama.cpp",
        field="compression.exports",
        hint="leave the gguf exports out",
    )


def _tokens(facts: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[TokenType]]:
    """Text and kind of every id; ids without a token are unused."""
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
    """Of each token the rank of the first merge that makes it, negated."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(first + second, rank)
    return tuple(-float(ranks[token]) if token in ranks else _NO_SCORE for token in tokens)


def _splitting(rule: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for what a byte-level tokenizer splits text by.

    Raises:
        ConfigurationError: if there is none.
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
        if regex in _BY_REGEX:
            return _BY_REGEX[regex]
    raise _unknown(f"byte-level tokenizers that split by {json.dumps(rule)[:200]}")


def _has_space_prefix(facts: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before its first word."""
    steps: list[dict[str, Any]] = []
    for part in ("normalizer", "pre_tokenizer"):
        whole = facts.get(part) or {}
        steps += whole.get("normalizers") or whole.get("pretokenizers") or [whole]
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
