"""GGUF vocabulary of a fast tokenizer: tokens, token types, scores and the pre-tokenizer.

llama.cpp supports two kinds of BPE. Byte-level BPE has merges and the name of a pre-tokenizer
(`tokenizer.ggml.pre`), which is recognised by its splitting rule. BPE with byte fallback (Llama 2,
Mistral, Gemma, Phi 3) is that of SentencePiece, where scores determine the order of merges; merges
in order of their rank have the scores 0, -1, -2, … Tokenizers without tokenizer.json, such as those
of SentencePiece models, are converted by transformers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gguf import GGUFWriter, SpecialVocab, TokenType
from transformers import AutoTokenizer

from intraslice_core.errors import ConfigurationError
from intraslice_core.export.gguf_pre_tokenizers import APPROXIMATED, pre_tokenizer_name

TOKENIZER_FILE = "tokenizer.json"

_PHI = "Phi-3"
_KEEP_SPACES = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Special tokens of models named Phi 3 after which llama.cpp keeps spaces."""
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
    stripping_tokens: frozenset[str]
    """Added tokens that swallow the spaces after them."""

    @property
    def caveat(self) -> str | None:
        """Return texts that llama.cpp tokenizes otherwise than transformers; None for none."""
        if self.pre_tokenizer in APPROXIMATED:
            return (
                f"llama.cpp's pre-tokenizer {self.pre_tokenizer} splits words in capitals outside "
                "ASCII, or with combining marks, otherwise than transformers"
            )
        if self.stripping_tokens and not self._strips_like_phi:
            tokens = ", ".join(sorted(self.stripping_tokens)[:3])
            return f"llama.cpp keeps spaces after special tokens that swallow them ({tokens})"
        return None

    @property
    def _strips_like_phi(self) -> bool:
        """Return whether exactly the tokens strip that do so in llama.cpp for Phi 3."""
        added = {
            token
            for token, kind in zip(self.tokens, self.token_types, strict=True)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        }
        return bool(self.stripping_tokens) and self.stripping_tokens == added - _KEEP_SPACES

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the vocabulary to a GGUF file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.token_types))
        if self.scores is not None:
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.space_prefix)
        if self._strips_like_phi:
            writer.add_name(_PHI)  # llama.cpp decides by the model's name
        self.special.add_to_gguf(writer, quiet=True)


def read_vocabulary(directory: Path, vocab_size: int, *, adds_bos: bool) -> GgufVocabulary:
    """Return the vocabulary of a checkpoint's tokenizer.

    Args:
        directory: holds the tokenizer's files and, if there is one, the chat template.
        vocab_size: rows of the embedding; ids beyond those of the tokenizer are unused tokens.
        adds_bos: True if the tokenizer begins every text with the BOS token.

    Raises:
        ConfigurationError: if llama.cpp does not support the tokenizer.
    """
    with _fast_tokenizer(directory) as converted:
        facts: dict[str, Any] = json.loads((converted / TOKENIZER_FILE).read_text(encoding="utf-8"))
        model = facts["model"]
        if model.get("type") != "BPE":
            raise _unsupported(f"{model.get('type')} tokenizers, only BPE")
        sentencepiece = bool(model.get("byte_fallback"))
        _require_plain_normalizer(facts.get("normalizer"), sentencepiece=sentencepiece)
        tokens, token_types = _tokens(facts, vocab_size)
        special = SpecialVocab(converted, load_merges=not sentencepiece, n_vocab=vocab_size)
        special.add_special_token = {**special.add_special_token, "bos": adds_bos}
    return GgufVocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre_tokenizer="default" if sentencepiece else _pre_tokenizer(facts),
        tokens=tuple(tokens),
        token_types=tuple(token_types),
        scores=_scores(model, tokens) if sentencepiece else None,
        special=special,
        space_prefix=_has_space_prefix(facts),
        stripping_tokens=frozenset(
            added["content"] for added in facts.get("added_tokens") or () if added.get("rstrip")
        ),
    )


@contextmanager
def _fast_tokenizer(directory: Path) -> Iterator[Path]:
    """Provide a directory with tokenizer.json, converted by transformers where it is missing.

    Raises:
        ConfigurationError: if transformers cannot convert the tokenizer.
    """
    if (directory / TOKENIZER_FILE).is_file():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="intraslice-") as scratch:
        converted = Path(scratch)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            tokenizer.save_pretrained(converted)
        except Exception as error:  # converters of foreign files share no exception class
            reason = str(error).strip().partition("\n")[0]
            raise _unsupported(f"a tokenizer that transformers cannot convert: {reason}") from error
        if not (converted / TOKENIZER_FILE).is_file():
            raise _unsupported(f"{type(tokenizer).__name__} without {TOKENIZER_FILE}")
        yield converted


def _unsupported(tokenizers: str) -> ConfigurationError:
    return ConfigurationError(
        f"the tokenizer cannot be exported to GGUF: llama.cpp does not support {tokenizers}",
        field="compression.exports",
        hint="remove the gguf exports",
    )


def _require_plain_normalizer(rule: Mapping[str, Any] | None, *, sentencepiece: bool) -> None:
    """Raise if the tokenizer changes characters, which llama.cpp does not.

    NFC is tolerated, as in llama.cpp's own converter: most texts are composed already.

    Raises:
        ConfigurationError: naming the step.
    """
    allowed = ("Prepend", "Replace") if sentencepiece else ("NFC",)
    steps = [] if not rule else rule.get("normalizers", [rule])
    for step in steps:
        spaces = step["type"] != "Replace" or step.get("pattern") == {"String": " "}
        if step["type"] not in allowed or not spaces:
            raise _unsupported(f"tokenizers that normalise texts by {json.dumps(step)[:200]}")


def _tokens(facts: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[TokenType]]:
    """Return text and type of every id; ids without a token are unused.

    Raises:
        ConfigurationError: naming a token whose id is beyond the embedding.
    """
    _require_rows(facts, vocab_size)
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
        # llama.cpp looks for added tokens before it replaces spaces.
        spaces = model.get("byte_fallback") and added.get("normalized")
        names[added["id"]] = added["content"].replace("▁", " ") if spaces else added["content"]
        if kinds[added["id"]] is not TokenType.UNKNOWN:
            control = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
            kinds[added["id"]] = control
    return names, kinds


def _require_rows(facts: Mapping[str, Any], vocab_size: int) -> None:
    ids = dict(facts["model"]["vocab"])
    ids |= {added["content"]: added["id"] for added in facts.get("added_tokens") or ()}
    last = max(ids, key=lambda text: ids[text])
    if ids[last] >= vocab_size:
        raise _unsupported(
            f"tokens beyond the embedding's {vocab_size} rows, such as {last!r} (id {ids[last]})"
        )


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(model: Mapping[str, Any], tokens: list[str]) -> tuple[float, ...]:
    """Return for each token the negated rank of the first merge that produces it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(_pair(merge)), rank)
    return tuple(-float(ranks[token]) if token in ranks else _NO_SCORE for token in tokens)


def _pre_tokenizer(facts: Mapping[str, Any]) -> str:
    """Return the name in llama.cpp of a byte-level tokenizer's splitting rule.

    Raises:
        ConfigurationError: if llama.cpp does not support the rule.
    """
    rule = facts.get("pre_tokenizer")
    whole_words = bool(facts["model"].get("ignore_merges"))
    name = pre_tokenizer_name(rule, ignore_merges=whole_words)
    if name is None and _all_merged(facts):
        name = pre_tokenizer_name(rule, ignore_merges=not whole_words)
    if name is None:
        raise _unsupported(f"byte-level tokenizers that split by {json.dumps(rule)[:200]}")
    return name


def _all_merged(facts: Mapping[str, Any]) -> bool:
    """Return whether merges produce every word of the vocabulary, so that none is taken whole."""
    model = facts["model"]
    products = {"".join(_pair(merge)) for merge in model["merges"]}
    products |= {added["content"] for added in facts.get("added_tokens") or ()}
    return all(len(text) == 1 or text in products for text in model["vocab"])


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


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
