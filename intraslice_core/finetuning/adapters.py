"""Low-rank adapters on a model's linear layers (library `peft`), and their merge into weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from intraslice_core import modeling
from intraslice_core.checkpoints.inspection import locate_tensors
from intraslice_core.checkpoints.reader import MappedFile, check_finite
from intraslice_core.checkpoints.writer import CheckpointWriter, WrittenRecord, ensure_disk_space
from intraslice_core.errors import ConfigurationError

_ADAPTER = "default"
Parameters = Mapping[str, nn.Parameter]


def add_adapters(model: PreTrainedModel, rank: int, alpha: float, seed: int) -> Parameters:
    """Add an adapter to every linear layer except the output head, in place.

    The head has none because it may share its weight with the embedding. The model's output does
    not change before the first step: one of each adapter's two matrices is zero. Only the adapters
    have gradients afterwards.

    Returns:
        The adapters' parameters by name, float32; the same seed gives the same ones.

    Raises:
        ConfigurationError: if the model has no linear layer left.
    """
    # Imported here because it takes as long as loading a small model.
    from peft import LoraConfig, inject_adapter_in_model

    names = list(_linear_layers(model))
    if not names:
        raise ConfigurationError(
            "the compressed model has no linear layer left to train",
            field="compression.recover",
            hint="compress with a smaller ratio, or leave recover out",
        )
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)  # type: ignore[arg-type]
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, _ADAPTER)
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    return parameters


def weight_changes(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return functions that compute what the adapters add to each weight.

    Returns:
        Functions by the name of the weight in the model without adapters.
    """
    from peft.tuners.lora import LoraLayer

    def change_of(layer: LoraLayer) -> Callable[[], Tensor]:
        @torch.no_grad()
        def change() -> Tensor:
            # Adapters of linear layers have this method; their common base class does not.
            delta: Tensor = layer.get_delta_weight(_ADAPTER)  # type: ignore[attr-defined]
            return delta

        return change

    return {
        f"{name}.weight": change_of(module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def _linear_layers(model: PreTrainedModel) -> Iterator[str]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name


def merge_into(directory: Path, changes: Mapping[str, Callable[[], Tensor]]) -> WrittenRecord:
    """Add changes to a checkpoint's weights one tensor at a time, then replace the checkpoint.

    Args:
        directory: of the checkpoint; names, shapes and dtypes stay.
        changes: functions that return the change, added in float32, by the name of the weight.

    Returns:
        The digests of everything written.

    Raises:
        NonFiniteWeightError: if a sum is not finite.
        InsufficientDiskError: if there is no room for a second copy of the weights.
        ValueError: if the checkpoint lacks one of the weights.
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
