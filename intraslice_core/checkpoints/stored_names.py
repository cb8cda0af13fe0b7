"""Correspondence of the tensors in a checkpoint to those of the model, as in transformers.

Checkpoints of a base model lack the prefix `model.`, others have it twice; a tied output head may
be stored although it equals the embedding. The module imports no torch.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from intraslice_core.checkpoints.inspection import TensorEntry, locate_tensors
from intraslice_core.errors import BrokenCheckpointError
from intraslice_core.families.family import Family
from intraslice_core.families.wrappers import Wrapper

_BUFFERS = re.compile(r"rotary_emb\.inv_freq|(^|\.)position_ids$|attention\.(masked_)?bias$")
"""Names of buffers that old checkpoints store and transformers drops without a word."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_CHUNK_BYTES = 2**24
_NAMED_AT_MOST = 3


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """File and header entry of one tensor."""

    file: str
    entry: TensorEntry


@dataclass(frozen=True, kw_only=True)
class OuterNames:
    """A family's names of the embedding and the output head, and the prefix of its base model."""

    embedding: str
    head: str

    @property
    def prefix(self) -> str:
        """Return the name of the base model in the causal language model."""
        return self.embedding.partition(".")[0]


def outer_names(family: Family) -> OuterNames:
    """Return the names of a family's embedding and output head."""
    return OuterNames(
        embedding=f"{family.modules.get('model.embed_tokens', 'model.embed_tokens')}.weight",
        head=f"{family.modules.get('lm_head', 'lm_head')}.weight",
    )


def model_name(stored: str, expected: Collection[str], prefix: str) -> str:
    """Return the model's name of a stored tensor: without or with the base model's prefix.

    Source: transformers' `rename_source_key`.
    """
    without = stored.removeprefix(f"{prefix}.")
    if without != stored and without in expected:
        return without
    prefixed = f"{prefix}.{stored}"
    return prefixed if prefixed in expected else stored


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a checkpoint by their stored names.

    Raises:
        BrokenCheckpointError: if a header is wrong.
    """
    file_of, entries = locate_tensors(directory)
    return {name: StoredTensor(file=file_of[name], entry=entry) for name, entry in entries.items()}


def by_model_name(
    stored: Mapping[str, StoredTensor], expected: Collection[str], family: Family
) -> dict[str, StoredTensor]:
    """Return the tensors by the model's names, or by their own if the model has none for them.

    Args:
        stored: tensors by their stored names.
        expected: names of the model's tensors.
        family: family of the model.

    Raises:
        BrokenCheckpointError: if two tensors have one name in the model.
    """
    prefix = outer_names(family).prefix
    tensors: dict[str, StoredTensor] = {}
    for own_name, tensor in stored.items():
        name = model_name(family.present_name(own_name), expected, prefix)
        if name in tensors:
            raise BrokenCheckpointError(
                f"{tensor.file}: tensor {name} is stored twice, the second time as {own_name}",
                field="model",
            )
        tensors[name] = tensor
    return tensors


def tied_to_stored(
    tensors: Mapping[str, StoredTensor], names: OuterNames
) -> dict[str, StoredTensor]:
    """Return the tensors of a model with tied embeddings: one matrix under the embedding's name.

    transformers ties in either direction, so the stored matrix may have the head's name.
    """
    one_matrix = dict(tensors)
    head = one_matrix.pop(names.head, None)
    if head is not None:
        one_matrix.setdefault(names.embedding, head)
    return one_matrix


def text_tensors(stored: Mapping[str, StoredTensor], wrapper: Wrapper) -> dict[str, StoredTensor]:
    """Return the language model's tensors of a wrapper by the text model's names.

    Raises:
        BrokenCheckpointError: if two tensors have one name in the text model.
    """
    tensors: dict[str, StoredTensor] = {}
    for own_name, tensor in stored.items():
        name = wrapper.text_name(own_name)
        if name is None:
            continue
        if name in tensors:
            raise BrokenCheckpointError(
                f"{tensor.file}: tensor {name} is stored twice, the second time as {own_name}",
                field="model",
            )
        tensors[name] = tensor
    return tensors


def has_separate_head(directory: Path, family: Family, wrapper: Wrapper | None = None) -> bool:
    """Return True if a checkpoint stores an output head that differs from the embedding.

    transformers does not tie the two then, whatever config.json says. Tensors of different data
    types count as different.

    Args:
        directory: of the checkpoint.
        family: of the model, or of the language model in a wrapper.
        wrapper: table of the wrapper, if the checkpoint is one.

    Raises:
        BrokenCheckpointError: if a header is wrong.
    """
    outer = outer_names(family)
    names = (outer.embedding, outer.head)
    stored = stored_tensors(directory)
    stored = stored if wrapper is None else text_tensors(stored, wrapper)
    tensors = by_model_name(stored, names, family)
    embedding, head = tensors.get(outer.embedding), tensors.get(outer.head)
    if embedding is None or head is None:
        return False
    if (embedding.entry.dtype, embedding.entry.shape) != (head.entry.dtype, head.entry.shape):
        return True
    return not _equal_bytes(directory, embedding, head)


def _equal_bytes(directory: Path, first: StoredTensor, second: StoredTensor) -> bool:
    """Compare two tensors of one size, stopping at the first difference."""
    with (
        (directory / first.file).open("rb") as first_file,
        (directory / second.file).open("rb") as second_file,
        mmap.mmap(first_file.fileno(), 0, access=mmap.ACCESS_READ) as first_bytes,
        mmap.mmap(second_file.fileno(), 0, access=mmap.ACCESS_READ) as second_bytes,
    ):
        starts = [
            8 + int.from_bytes(content[:8], "little") + tensor.entry.begin
            for content, tensor in ((first_bytes, first), (second_bytes, second))
        ]
        size = first.entry.end - first.entry.begin
        for offset in range(0, size, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, size - offset)
            parts = [
                content[start + offset : start + offset + length]
                for content, start in zip((first_bytes, second_bytes), starts, strict=True)
            ]
            if parts[0] != parts[1]:
                return False
    return True


def unused_tensors_warnings(names: Collection[str], layers: int) -> tuple[str, ...]:
    """Return warnings about stored tensors that the model does not have.

    Args:
        names: of the unexpected tensors.
        layers: number of layers in config.json.
    """
    unexpected = sorted(name for name in names if not _BUFFERS.search(name))
    beyond = {
        int(match[1])
        for name in unexpected
        if (match := _LAYER.search(name)) and int(match[1]) >= layers
    }
    others = [
        name
        for name in unexpected
        if not ((match := _LAYER.search(name)) and int(match[1]) >= layers)
    ]
    warnings = []
    if beyond:
        warnings.append(
            f"config.json has num_hidden_layers {layers}: the stored layers {min(beyond)} to "
            f"{max(beyond)} are not used, as in transformers"
        )
    if others:
        more = f" and {len(others) - _NAMED_AT_MOST} more" if len(others) > _NAMED_AT_MOST else ""
        warnings.append(
            "stored tensors that the model does not have are not used, as in transformers: "
            f"{', '.join(others[:_NAMED_AT_MOST])}{more}"
        )
    return tuple(warnings)
