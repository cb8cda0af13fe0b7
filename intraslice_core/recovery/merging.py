"""Writing what was learnt into the weights of a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig

from intraslice_core import modeling
from intraslice_core.checkpoints import CheckpointWriter, check_finite, ensure_disk_space
from intraslice_core.checkpoints.mapped_file import MappedFile
from intraslice_core.checkpoints.record import WrittenRecord
from intraslice_core.inspection.layout import locate_tensors


def merge_into(directory: Path, changes: Mapping[str, Callable[[], Tensor]]) -> WrittenRecord:
    """Add changes to a checkpoint's weights, a tensor at a time; it is replaced when all is done.

    Args:
        directory: of the checkpoint, which keeps its names, shapes and dtypes.
        changes: by the name of the weight, what is added to it in float32.

    Returns:
        What was written.

    Raises:
        NonFiniteWeightError: if a sum is not finite.
        InsufficientDiskError: if there is no room for a second copy of the weights.
        ValueError: if the checkpoint has no such weight.
    """
    file_of, entries = locate_tensors(directory)
    if missing := changes.keys() - entries.keys():
        raise ValueError(f"{directory} has no weight {min(missing)}")
    ensure_disk_space(directory, sum(entry.end - entry.begin for entry in entries.values()))
    files = {name: MappedFile(directory / name) for name in sorted(set(file_of.values()))}
    merged = directory.with_name(f"{directory.name}-merged")
    with CheckpointWriter(merged) as writer:
        for name, entry in entries.items():
            tensor = files[file_of[name]].tensor(entry)
            change = changes.get(name)
            writer.add({name: tensor if change is None else _sum(name, tensor, change())})
        modeling.register()
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        writer.finish(config, directory)
    shutil.rmtree(directory)
    merged.replace(directory)
    return writer.record


def _sum(name: str, tensor: Tensor, change: Tensor) -> Tensor:
    added = tensor.float() + change.to("cpu", copy=False).float()
    return check_finite(name, added.to(tensor.dtype))
