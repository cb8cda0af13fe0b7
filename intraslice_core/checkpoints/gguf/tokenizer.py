"""Tokenizers in the `tokenizers` library that give the tokens of a GGUF file's vocabulary.

Byte-level BPE (`gpt2`) has merges and a named splitting rule. SentencePiece BPE (`llama`) has
scores: of all neighbouring pieces whose concatenation is a token, those that give the token of
highest score are merged first. That order is expressed as merges by rank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerFast

from intraslice_core.checkpoints.gguf.pre_tokenizers import SPLITTING_RULES, SplittingRule
from intraslice_core.checkpoints.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError

SPACE = "▁"
"""Space in the tokens of SentencePiece."""

_STRIPPING = ("phi-3", "phi3")
"""Parts of the names of models whose control tokens swallow the whitespace after them."""
_NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of special tokens, and which of them begin and end every text."""

    bos: int | None
    pad: int | None
    unknown: int | None
    ends: tuple[int, ...]
    """Tokens that end a generation: end of sequence first, then of turn and of message."""
    add_bos: bool
    add_eos: bool


def special_tokens(vocabulary: Vocabulary) -> SpecialTokens:
    """Return the special tokens; flags that the file does not state are llama.cpp's defaults.

    Raises:
        BrokenCheckpointError: if a token is to be added that the file does not name.
        UnsupportedArchitectureError: if the splitting rule is unknown.
    """
    ids = vocabulary.ids
    add_bos = vocabulary.add_bos
    if add_bos is None:
        bpe = vocabulary.algorithm == "gpt2"
        add_bos = splitting_rule(vocabulary).add_bos and "bos" in ids if bpe else True
    for added, name in ((add_bos, "bos"), (vocabulary.add_eos, "eos")):
        if added and name not in ids:
            raise BrokenCheckpointError(
                f"{vocabulary.file}: tokenizer.ggml.add_{name}_token is true, "
                f"tokenizer.ggml.{name}_token_id is missing",
                field="model",
            )
    ends = dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids)
    return SpecialTokens(
        bos=ids.get("bos"),
        pad=ids.get("padding"),
        unknown=ids.get("unknown"),
        ends=tuple(ends),
        add_bos=add_bos,
        add_eos=vocabulary.add_eos,
    )


def splitting_rule(vocabulary: Vocabulary) -> SplittingRule:
    """Return the splitting rule of a byte-level vocabulary.

    Raises:
        UnsupportedArchitectureError: naming the rule, if it is unknown or not stated.
    """
    rule = SPLITTING_RULES.get(vocabulary.pre_tokenizer or "")
    if rule is None:
        name = vocabulary.pre_tokenizer
        raise UnsupportedArchitectureError(
            f"{vocabulary.file}: tokenizer.ggml.pre "
            + (f"{name[:64]!r} is not supported" if name else "is missing"),
            field="model",
            hint="convert the model again with a recent llama.cpp, or give it as safetensors",
        )
    return rule


def save_tokenizer(vocabulary: Vocabulary, special: SpecialTokens, directory: Path) -> None:
    """Save tokenizer, chat templates and generation settings as transformers reads them.

    Raises:
        BrokenCheckpointError: naming a merge of unknown tokens.
        UnsupportedArchitectureError: if the splitting rule is unknown.
    """

    def text(number: int | None) -> str | None:
        return None if number is None else vocabulary.tokens[number]

    end = special.ends[0] if special.ends else None
    templates = vocabulary.chat_templates
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=build_tokenizer(vocabulary, special),
        bos_token=text(special.bos),
        eos_token=text(end),
        unk_token=text(special.unknown),
        pad_token=text(special.pad),
        add_bos_token=special.add_bos,
        add_eos_token=special.add_eos,
        clean_up_tokenization_spaces=False,
        chat_template=templates["default"] if list(templates) == ["default"] else templates or None,
    )
    tokenizer.save_pretrained(directory)
    GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=special.bos,
        eos_token_id=list(special.ends) if len(special.ends) > 1 else end,
        pad_token_id=special.pad,
    ).save_pretrained(directory)


def build_tokenizer(vocabulary: Vocabulary, special: SpecialTokens) -> Tokenizer:
    """Return the tokenizer of a GGUF file.

    Raises:
        BrokenCheckpointError: naming a merge of unknown tokens.
        UnsupportedArchitectureError: if the splitting rule is unknown.
    """
    byte_level = vocabulary.algorithm == "gpt2"
    tokenizer = _byte_level(vocabulary) if byte_level else _sentencepiece(vocabulary, special)
    added = list(_added_tokens(vocabulary))
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    tokenizer.post_processor = _template(vocabulary, special)
    return tokenizer


def _template(vocabulary: Vocabulary, special: SpecialTokens) -> TemplateProcessing:
    """Return the rule that adds special tokens before and after a text."""
    begin = [special.bos] if special.add_bos and special.bos is not None else []
    end = list(special.ends[:1]) if special.add_eos else []

    def text(name: str, kind: int) -> list[str]:
        parts = [*(vocabulary.tokens[number] for number in begin), name]
        parts += [vocabulary.tokens[number] for number in end]
        return [f"{part}:{kind}" for part in parts]

    return TemplateProcessing(
        single=text("$A", 0),
        pair=[*text("$A", 0), *text("$B", 1)],
        special_tokens=[(vocabulary.tokens[number], number) for number in {*begin, *end}],
    )


def _numbered(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the ids by token, without the placeholders after the last real token."""
    count = len(vocabulary.tokens)
    while count and (
        vocabulary.types[count - 1] == UNUSED
        and vocabulary.tokens[count - 1] == f"[PAD{count - 1}]"
    ):
        count -= 1
    return {token: number for number, token in enumerate(vocabulary.tokens[:count])}


def _added_tokens(vocabulary: Vocabulary) -> Iterator[AddedToken]:
    """Yield the tokens that are found in a text before it is split."""
    stripping = any(part in vocabulary.name.lower() for part in _STRIPPING)
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            yield AddedToken(
                token,
                special=kind != USER_DEFINED,
                normalized=False,
                rstrip=stripping and token not in _NOT_STRIPPING,
            )


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    rule = splitting_rule(vocabulary)
    numbered = _numbered(vocabulary)
    merges = [_merge(vocabulary, numbered, index) for index in range(len(vocabulary.merges))]
    tokenizer = Tokenizer(
        BPE(vocab=numbered, merges=merges, fuse_unk=False, ignore_merges=rule.ignore_merges)
    )
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge(vocabulary: Vocabulary, numbered: Mapping[str, int], index: int) -> tuple[str, str]:
    """Return the two tokens of a merge.

    Raises:
        BrokenCheckpointError: naming the merge, if it is not two tokens that give a third.
    """
    merge = vocabulary.merges[index]
    space = merge.find(" ", 1)
    left, right = merge[:space], merge[space + 1 :]
    for token in (left, right, left + right):
        if space < 1 or token not in numbered:
            raise BrokenCheckpointError(
                f"{vocabulary.file}: merge {index} ({merge[:64]!r}) of tokenizer.ggml.merges needs "
                f"the token {token[:64]!r}, which tokenizer.ggml.tokens lacks",
                field="model",
            )
    return left, right


def _sentencepiece(vocabulary: Vocabulary, special: SpecialTokens) -> Tokenizer:
    numbered = _numbered(vocabulary)
    unknown = None if special.unknown is None else vocabulary.tokens[special.unknown]
    tokenizer = Tokenizer(
        BPE(
            vocab=numbered,
            merges=_merges_by_score(vocabulary, numbered),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in vocabulary.types,
        )
    )
    prefixed = vocabulary.add_space_prefix is not False
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefixed else replace
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, decoders.Strip(content=" ", left=1)] if prefixed else steps
    )
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary, numbered: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every split of a token into two tokens, highest score of the whole first.

    Raises:
        BrokenCheckpointError: if the file has no scores.
    """
    if vocabulary.scores is None:
        raise BrokenCheckpointError(
            f"{vocabulary.file}: tokenizer.ggml.scores is missing", field="model"
        )
    pieces = {token for token, number in numbered.items() if vocabulary.types[number] == NORMAL}
    ranked = sorted(
        pieces, key=lambda token: (-_score(vocabulary, numbered[token]), numbered[token])
    )
    return [pair for token in ranked for pair in _splits(token, pieces)]


def _score(vocabulary: Vocabulary, number: int) -> float:
    return vocabulary.scores[number] if vocabulary.scores else 0.0


def _splits(token: str, pieces: Collection[str]) -> Iterator[tuple[str, str]]:
    for middle in range(1, len(token)):
        if token[:middle] in pieces and token[middle:] in pieces:
            yield token[:middle], token[middle:]
