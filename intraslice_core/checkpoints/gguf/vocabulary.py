"""Vocabulary in the metadata of a GGUF file: tokens, types, merges, special tokens and flags.

`tokenizer.ggml.model` names the algorithm: `gpt2` is byte-level BPE with merges, `llama` is
SentencePiece BPE with scores. Keys that do not change the tokens of a text are listed with the
reason; unknown keys are rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from intraslice_core.checkpoints.gguf.header import GgufArray, GgufHeader, read_array
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens (`gguf.TokenType`)."""

Algorithm = Literal["gpt2", "llama"]
"""Byte-level BPE with merges, or SentencePiece BPE with scores."""

_PREFIX = "tokenizer."
_ALGORITHMS: tuple[Algorithm, ...] = ("gpt2", "llama")
_READ = (
    "ggml.model",
    "ggml.pre",
    "ggml.tokens",
    "ggml.token_type",
    "ggml.scores",
    "ggml.merges",
    "ggml.bos_token_id",
    "ggml.eos_token_id",
    "ggml.eot_token_id",
    "ggml.eom_token_id",
    "ggml.unknown_token_id",
    "ggml.padding_token_id",
    "ggml.add_bos_token",
    "ggml.add_eos_token",
    "ggml.add_space_prefix",
    "chat_template",
    "chat_templates",
)
_IRRELEVANT = (
    *("ggml.seperator_token_id", "ggml.cls_token_id", "ggml.mask_token_id"),  # of encoders
    *("ggml.add_sep_token", "ggml.token_type_count"),  # of encoders
    *("ggml.fim_pre_token_id", "ggml.fim_suf_token_id", "ggml.fim_mid_token_id"),  # code infilling
    *("ggml.fim_pad_token_id", "ggml.fim_rep_token_id", "ggml.fim_sep_token_id"),
    *("ggml.prefix_token_id", "ggml.suffix_token_id", "ggml.middle_token_id"),
    "ggml.remove_extra_whitespaces",  # read by llama.cpp for unigram models only
    "ggml.suppress_tokens",  # a sampling setting
)
_TEMPLATE = "chat_template."
"""Prefix of the keys of named chat templates."""
_DEFAULT_IDS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {}}
)
"""Special tokens that SentencePiece files need not state."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokenizer in a GGUF file."""

    file: str
    """File name for error messages."""
    architecture: str
    name: str
    """Name of the model, which llama.cpp derives an attribute of tokens from."""
    algorithm: Algorithm
    pre_tokenizer: str | None
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...]
    ids: Mapping[str, int]
    """Ids of the special tokens by name (bos, eos, eot, eom, unknown, padding)."""
    add_bos: bool | None
    add_eos: bool
    add_space_prefix: bool | None
    chat_templates: Mapping[str, str]
    """Chat templates by name; that of `default` is the main one."""


def read_vocabulary(header: GgufHeader, *, rows: int) -> Vocabulary:
    """Return the vocabulary of a GGUF file.

    Args:
        header: header of the file or files.
        rows: rows of the embedding.

    Raises:
        BrokenCheckpointError: if tokens are missing or repeated, or if their number is not that of
            the embedding's rows.
        UnsupportedArchitectureError: if the algorithm or a key is not supported.
    """
    values = {
        key.removeprefix(_PREFIX): value
        for key, value in header.values.items()
        if key.startswith(_PREFIX)
    }
    _require_known(header, values)
    algorithm = values.get("ggml.model")
    if algorithm not in _ALGORITHMS:
        raise UnsupportedArchitectureError(
            f"{header.name}: tokenizer.ggml.model {algorithm!r} is not supported",
            field="model",
            hint=f"supported: {', '.join(_ALGORITHMS)}; or give the model as safetensors",
        )
    tokens = _array(header, values, "ggml.tokens", rows)
    _require_distinct(header, tokens)
    scores = _array(header, values, "ggml.scores", rows) if "ggml.scores" in values else None
    types = values.get("ggml.token_type")
    pre = values.get("ggml.pre")
    return Vocabulary(
        file=header.name,
        architecture=header.architecture or "",
        name=str(header.values.get("general.name", "")),
        algorithm=algorithm,
        pre_tokenizer=pre if isinstance(pre, str) else None,
        tokens=tuple(tokens),
        types=tuple(_array(header, values, "ggml.token_type", rows)) if types else (NORMAL,) * rows,
        scores=None if scores is None else tuple(map(float, scores)),
        merges=tuple(_array(header, values, "ggml.merges")) if "ggml.merges" in values else (),
        ids=_ids(header, values, algorithm, rows),
        add_bos=_flag(header, values, "ggml.add_bos_token"),
        add_eos=bool(_flag(header, values, "ggml.add_eos_token")),
        add_space_prefix=_flag(header, values, "ggml.add_space_prefix"),
        chat_templates=_templates(values),
    )


def _require_known(header: GgufHeader, values: Mapping[str, Any]) -> None:
    """Raise if a key of the tokenizer is neither read nor known to be irrelevant.

    Raises:
        UnsupportedArchitectureError: naming the key.
    """
    for key in values:
        if key not in _READ and key not in _IRRELEVANT and not key.startswith(_TEMPLATE):
            raise UnsupportedArchitectureError(
                f"{header.name}: the metadata key {_PREFIX}{key[:64]} is not supported",
                field="model",
                hint="give the model as safetensors",
            )


def _array(
    header: GgufHeader, values: Mapping[str, Any], key: str, items: int | None = None
) -> list[Any]:
    """Return the items of an array, at most one for each row of the embedding.

    Raises:
        BrokenCheckpointError: if it is missing or has another number of items.
    """
    array = values.get(key)
    if not isinstance(array, GgufArray):
        raise BrokenCheckpointError(f"{header.name}: {_PREFIX}{key} is missing", field="model")
    if items is not None and array.items != items:
        raise BrokenCheckpointError(
            f"{header.name}: {_PREFIX}{key} has {array.items} items for {items} rows of "
            "token_embd.weight",
            field="model",
        )
    return list(read_array(array))


def _require_distinct(header: GgufHeader, tokens: list[Any]) -> None:
    if len(set(tokens)) < len(tokens):
        token, _ = Counter(tokens).most_common(1)[0]
        raise BrokenCheckpointError(
            f"{header.name}: token {str(token)[:64]!r} occurs twice in the vocabulary",
            field="model",
        )


def _ids(
    header: GgufHeader, values: Mapping[str, Any], algorithm: str, rows: int
) -> dict[str, int]:
    """Return the ids of the special tokens that the file states or that are the default.

    Raises:
        BrokenCheckpointError: if an id is not a token.
    """
    ids = dict(_DEFAULT_IDS[algorithm])
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        value = values.get(f"ggml.{name}_token_id")
        if value is None:
            continue
        if type(value) is not int or not 0 <= value < rows:
            raise BrokenCheckpointError(
                f"{header.name}: {_PREFIX}ggml.{name}_token_id {value!r} is not one of {rows} "
                "tokens",
                field="model",
            )
        ids[name] = value
    return {name: number for name, number in ids.items() if number < rows}


def _flag(header: GgufHeader, values: Mapping[str, Any], key: str) -> bool | None:
    value = values.get(key)
    if value is not None and type(value) is not bool:
        raise BrokenCheckpointError(
            f"{header.name}: {_PREFIX}{key} is {value!r}, expected true or false", field="model"
        )
    return value


def _templates(values: Mapping[str, Any]) -> dict[str, str]:
    named = {
        key.removeprefix(_TEMPLATE): value
        for key, value in values.items()
        if key.startswith(_TEMPLATE) and isinstance(value, str)
    }
    main = values.get("chat_template")
    return {"default": main, **named} if isinstance(main, str) else named
