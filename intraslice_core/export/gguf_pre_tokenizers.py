"""Names in llama.cpp of the splitting rules of byte-level tokenizers.

Each rule below gave the same token ids as llama.cpp with that name on the texts of
`tests/intraslice_core/export/test_gguf_vocabulary.py`, except where `APPROXIMATED` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LOWER_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+"
_UPPER_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
_PATH_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_CODE = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*"
)

GPT2, DIGITS = "GPT-2", "digits"
"""Steps that are no regular expression: GPT-2's own rule, and single digits."""

_RULES: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        (GPT2,): "gpt-2",
        (DIGITS, GPT2): "smollm",
        (rf"{_WORDS}\p{{N}}{{1,3}}{_SIGNS}{_SPACES}",): "dbrx",
        (rf"{_WORDS}\p{{N}}{_SIGNS}{_SPACES}",): "qwen2",
        (
            _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES,
        ): "qwen35",
        (rf"{_WORDS}\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_SPACES}",): "seed-coder",
        (rf"{_LOWER_WORDS}|{_UPPER_WORDS}|\p{{N}}{_PATH_SIGNS}{_SPACES}",): "tekken",
        (
            rf"{_LOWER_WORDS}{_CONTRACTIONS}?|{_UPPER_WORDS}{_CONTRACTIONS}?"
            rf"|\p{{N}}{{1,3}}{_PATH_SIGNS}{_SPACES}",
        ): "gpt-4o",
        (r"\p{N}{1,3}", "[一-龥\u3040-ゟ\u30a0-ヿ]+", _CODE + _SPACES): "deepseek-v3",
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGITS): "deepseek-coder",
        (r"\p{N}+", r"(?=(\d{3})+(?!\d))"): "superbpe",
    }
)
"""Names by the steps before the mapping of bytes."""

_WHOLE_WORDS: Mapping[str, str] = MappingProxyType({"dbrx": "llama-bpe", "tekken": "tekken"})
"""Names with which llama.cpp takes words of the vocabulary before any merge (`ignore_merges`)."""

APPROXIMATED = frozenset({"tekken", "gpt-4o"})
"""Names with which llama.cpp splits words otherwise, as its own converter does, if they have
combining marks, or letters outside ASCII in capitals."""


def pre_tokenizer_name(rule: Mapping[str, Any] | None, *, ignore_merges: bool) -> str | None:
    """Return the name of a splitting rule, or None if llama.cpp does not support it.

    Args:
        rule: `pre_tokenizer` of tokenizer.json.
        ignore_merges: True if words of the vocabulary that no merge produces are taken whole.
    """
    steps = tuple(_steps(rule)) if rule else ()
    name = _RULES.get(steps)
    if name is None or not ignore_merges:
        return None if name == "tekken" else name
    return _WHOLE_WORDS.get(name)


def _steps(rule: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rule's steps; unknown ones by their type, which no rule of llama.cpp has."""
    for step in rule.get("pretokenizers") or [rule]:
        kind = step["type"]
        pattern = step.get("pattern") or {}
        if kind == "ByteLevel" and not step.get("add_prefix_space", True):
            yield from [GPT2] if step.get("use_regex", True) else []
        elif kind == "Digits" and step.get("individual_digits"):
            yield DIGITS
        elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            regex = pattern.get("Regex", "unknown pattern")
            yield regex.replace("\r", r"\r").replace("\n", r"\n")
        else:
            yield kind
