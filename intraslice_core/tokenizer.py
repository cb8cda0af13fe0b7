"""Loading of a model's tokenizer, and the check of its tokens against the embedding."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.errors import TokenizerError
from intraslice_core.files import is_lfs_pointer

_FIELD = "model"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
)
"""Patterns of files with a vocabulary."""
_SETTINGS = ("tokenizer.json", "tokenizer_config.json", "*.json")
_COMPLETE_HINT = "copy the tokenizer's files of the original model into the directory"
_NEED_LIBRARIES = ("sentencepiece", "tiktoken")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer from its files, without running code from them.

    Raises:
        TokenizerError: if there is none, it cannot be loaded, or it has no vocabulary.
    """
    _require_files(directory)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        tokenizer("a")  # some wrong settings are noticed only by a text
    # Broken files raise errors of every kind, some of them bare `Exception`s of other languages.
    except Exception as error:
        raise _diagnosed(directory, error) from error
    # Several classes silently start with an empty vocabulary if their files are missing.
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise TokenizerError(
            f"the tokenizer of {directory} has no vocabulary besides special tokens",
            field=_FIELD,
            hint=_COMPLETE_HINT,
        )
    return tokenizer


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the number of tokens that a model has an embedding for."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def require_known_tokens(
    tokens: Tensor, rows: int, tokenizer: PreTrainedTokenizerBase, source: str
) -> None:
    """Raise if a text contains a token that the model has no embedding for.

    Args:
        tokens: token ids, int64, in any shape.
        rows: rows of the model's embedding.
        tokenizer: names the token.
        source: name of the text.

    Raises:
        TokenizerError: naming the token and its id.
    """
    largest = int(tokens.max()) if tokens.numel() else 0
    if largest < rows:
        return
    token = tokenizer.convert_ids_to_tokens(largest)
    raise TokenizerError(
        f"{source} contains token {token!r} with id {largest}, but the model's embedding has only "
        f"{rows} rows",
        field=_FIELD,
        hint="use the tokenizer that belongs to these weights, remove the token from the text, or "
        "resize the model (resize_token_embeddings) and train the new rows",
    )


def _require_files(directory: Path) -> None:
    """Raise if no file has a vocabulary, or merges are missing, which some classes ignore."""
    present = {file.name for pattern in _VOCABULARIES for file in directory.glob(pattern)}
    if not present:
        raise TokenizerError(
            f"{directory} has no tokenizer (tokenizer.json or tokenizer.model)",
            field=_FIELD,
            hint=_COMPLETE_HINT,
        )
    if present == {"vocab.json"} and not (directory / "merges.txt").is_file():
        raise TokenizerError(
            f"{directory} has vocab.json, but no merges.txt", field=_FIELD, hint=_COMPLETE_HINT
        )


def _diagnosed(directory: Path, error: Exception) -> TokenizerError:
    """Return an error that says why the tokenizer cannot be loaded."""
    for pattern in dict.fromkeys((*_VOCABULARIES, *_SETTINGS)):
        for file in sorted(directory.glob(pattern)):
            reason = _broken_file(file)
            if reason:
                return TokenizerError(f"{file} {reason[0]}", field=_FIELD, hint=reason[1])
    code = _own_class(directory)
    if code is not None:
        return TokenizerError(
            f"the tokenizer of {directory} is code of the checkpoint ({code}), which is never "
            "executed",
            field=_FIELD,
            hint="if a tokenizer.json describes the same tokenizer, remove auto_map and "
            "tokenizer_class from tokenizer_config.json",
        )
    return _undiagnosed(directory, error)


def _undiagnosed(directory: Path, error: Exception) -> TokenizerError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    missing = [library for library in _NEED_LIBRARIES if find_spec(library) is None]
    if any(library in str(error) for library in missing) and not _has_tokenizer_json(directory):
        files = ", ".join(sorted(file.name for file in directory.glob("*.model"))) or "its files"
        return TokenizerError(
            f"the tokenizer of {directory} cannot be loaded from {files}: {reason}",
            field=_FIELD,
            hint=f"pip install {' '.join(missing)}, or add the model's tokenizer.json",
        )
    return TokenizerError(
        f"the tokenizer of {directory} cannot be loaded: {type(error).__name__}: {reason}",
        field=_FIELD,
        hint=_COMPLETE_HINT,
    )


def _has_tokenizer_json(directory: Path) -> bool:
    return (directory / "tokenizer.json").is_file()


def _broken_file(file: Path) -> tuple[str, str] | None:
    """Return what is wrong with a file and what to do, or None if it can be parsed."""
    if not file.is_file():
        return "is not a file", _COMPLETE_HINT
    if is_lfs_pointer(file):
        return (
            "is a git-lfs pointer, not the file itself",
            "run `git lfs pull` in the directory",
        )
    if file.suffix != ".json":
        return None
    try:
        content: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}", _COMPLETE_HINT
    return None if isinstance(content, dict) else ("is not a JSON object", _COMPLETE_HINT)


def _own_class(directory: Path) -> str | None:
    """Return the tokenizer class that is code of the checkpoint, if it names one."""
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    code = settings.get("auto_map") if isinstance(settings, dict) else None
    names = code.get("AutoTokenizer") if isinstance(code, dict) else None
    if isinstance(names, list):
        names = next((name for name in names if name), None)
    return names if isinstance(names, str) else None
