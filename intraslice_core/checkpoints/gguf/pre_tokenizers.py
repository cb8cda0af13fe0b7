"""Splitting rules of byte-level tokenizers by their names in llama.cpp (`tokenizer.ggml.pre`).

The expressions are those of the original tokenizers, which llama.cpp adapts to its own engine
(`llama-vocab.cpp`). A name that is not in the table is rejected: another rule would give other
tokens without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Sequence, Split


@dataclass(frozen=True, kw_only=True)
class SplittingRule:
    """Splits of a text before merges, and the flags that llama.cpp derives from the name."""

    expressions: tuple[str, ...] = ()
    """Regular expressions whose matches are split off, one after the other."""
    punctuation: bool = False
    """True if runs of punctuation are split off first."""
    digits: bool = False
    """True if every digit is split off first."""
    words: bool = False
    """True if GPT-2's expression is applied last."""
    ignore_merges: bool = False
    """True if a piece that is a token needs no merges."""
    add_bos: bool = False
    """True if BOS begins a text unless the file says otherwise."""

    def pre_tokenizer(self) -> PreTokenizer:
        """Return the rule for the `tokenizers` library."""
        steps: list[PreTokenizer] = []
        if self.punctuation:
            steps.append(Punctuation("contiguous"))
        if self.digits:
            steps.append(Digits(individual_digits=True))
        splits = [Split(Regex(expression), "isolated") for expression in self.expressions]
        letters = ByteLevel(add_prefix_space=False, use_regex=self.words)
        # Falcon's expressions follow the words.
        steps += [letters, *splits] if self.punctuation else [*splits, letters]
        return steps[0] if len(steps) == 1 else Sequence(steps)


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CAPITALISED = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+"
_UPPER_CASE = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"

_GPT4 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = rf"{_CAPITALISED}|{_UPPER_CASE}|\p{{N}}|{_REST_WITH_SLASH}"
_GPT4O = (
    rf"{_CAPITALISED}{_CONTRACTIONS}?|{_UPPER_CASE}{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"|{_REST_WITH_SLASH}"
)
_SEED = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ\u30a0-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_COHERE = (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)

_GPT2_RULE = SplittingRule(words=True)
_STARCODER_RULE = SplittingRule(words=True, digits=True)
_LLAMA3_RULE = SplittingRule(expressions=(_GPT4,), ignore_merges=True, add_bos=True)
_GPT4_RULE = SplittingRule(expressions=(_GPT4,))
_GLM4_RULE = SplittingRule(expressions=(_GPT4,), ignore_merges=True)
_QWEN2_RULE = SplittingRule(expressions=(_QWEN2,))
_GPT4O_RULE = SplittingRule(expressions=(_GPT4O,))

SPLITTING_RULES: Mapping[str, SplittingRule] = MappingProxyType(
    {
        **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), _GPT2_RULE),
        **dict.fromkeys(("gigachat", "a.x-4.0", "mellum", "modern-bert"), _GPT2_RULE),
        **dict.fromkeys(("granite-docling", "exaone4"), _GPT2_RULE),
        **dict.fromkeys(("starcoder", "refact", "command-r", "smollm"), _STARCODER_RULE),
        **dict.fromkeys(("codeshell", "exaone", "minerva-7b", "mellum2"), _STARCODER_RULE),
        **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _LLAMA3_RULE),
        **dict.fromkeys(("falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3_RULE),
        **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _GPT4_RULE),
        **dict.fromkeys(("glm4", "glm5"), _GLM4_RULE),
        **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2"), _QWEN2_RULE),
        **dict.fromkeys(("megrez", "stablelm2", "hunyuan", "solar-open"), _QWEN2_RULE),
        "grok-2": _QWEN2_RULE,
        "qwen35": SplittingRule(expressions=(_QWEN35,)),
        "tekken": SplittingRule(expressions=(_TEKKEN,), ignore_merges=True, add_bos=True),
        **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O_RULE),
        **dict.fromkeys(("tiny_aya", "cohere2moe"), SplittingRule(expressions=_COHERE)),
        "seed-coder": SplittingRule(expressions=(_SEED,)),
        **dict.fromkeys(
            ("deepseek-v3", "hunyuan-dense", "joyai-llm"), SplittingRule(expressions=_DEEPSEEK3)
        ),
        "deepseek-coder": SplittingRule(
            expressions=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
        ),
        "falcon": SplittingRule(punctuation=True, words=True, expressions=(r"[0-9][0-9][0-9]",)),
    }
)
"""Rules by llama.cpp's names."""
