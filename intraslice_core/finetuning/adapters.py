"""Trained parameters: all weights, or low-rank adapters (library `peft`) and their merge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from intraslice_core import modeling
from intraslice_core.checkpoints.inspection import locate_tensors
from intraslice_core.checkpoints.reader import MappedFile, check_finite
from intraslice_core.checkpoints.writer import CheckpointWriter, WrittenRecord, ensure_disk_space
from intraslice_core.config import RecoveryConfig
from intraslice_core.errors import ConfigurationError

_ADAPTER = "default"
Parameters = Mapping[str, nn.Parameter]


def prepare_parameters(model: PreTrainedModel, config: RecoveryConfig) -> Parameters:
    """Select the parameters to train, in place: all weights, or adapters that are added.

    Only they have gradients afterwards, and all of them are float32: smaller updates would be
    rounded away in bfloat16.

    Returns:
        The parameters by name. The same seed gives the same adapters.

    Raises:
        ConfigurationError: if adapters are requested and the model has no linear layer left.
    """
    if config.adapter == "none":
        return _all_weights(model, config)
    return add_adapters(model, config)


def _all_weights(model: PreTrainedModel, config: RecoveryConfig) -> Parameters:
    model.to(torch.float32)  # type: ignore[arg-type]
    model.requires_grad_(True)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding: Any = model.get_input_embeddings()
    # A head that no loss depends on has no gradient, which several processes would wait for.
    if not config.needs_logits and head.weight is not embedding.weight:
        head.requires_grad_(False)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def add_adapters(model: PreTrainedModel, config: RecoveryConfig) -> Parameters:
    """Add an adapter to every linear layer except the output head, in place.

    The head has none because it may share its weight with the embedding. The model's output does
    not change before the first step: one of each adapter's two matrices is zero, and the
    magnitudes of DoRA are those of the weights.

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
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules=names,
        use_dora=config.adapter == "dora",
    )
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        inject_adapter_in_model(settings, model, _ADAPTER)
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    return parameters


MergedWeight = Callable[[Tensor], Tensor]
"""Returns the trained weight for the stored one, of the same shape."""


def merged_weights(model: nn.Module) -> dict[str, MergedWeight]:
    """Return functions that compute the trained weights from the stored ones.

    Returns:
        Functions by the name of the weight in the model without adapters: of each layer with an
        adapter, or else of every trained weight.
    """
    from peft.tuners.lora import LoraLayer

    def merged_by(layer: Any) -> MergedWeight:
        @torch.no_grad()
        def merge(stored: Tensor) -> Tensor:
            base: Any = layer.get_base_layer()
            dense: Tensor = base.weight.data
            # Copied: the stored weight may be mapped from a file, and is added to in place.
            base.weight.data = stored.to(dense.device, torch.float32, copy=True)
            layer.merge()
            merged: Tensor = base.weight.data
            base.weight.data = dense
            layer.merged_adapters.clear()
            return merged

        return merge

    adapted = {
        f"{name}.weight": merged_by(module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    return adapted or {
        name: _replaced_by(weight.detach())
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _replaced_by(weight: Tensor) -> MergedWeight:
    return lambda _: weight


def _linear_layers(model: PreTrainedModel) -> Iterator[str]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name


def merge_into(directory: Path, trained: Mapping[str, MergedWeight]) -> WrittenRecord:
    """Replace a checkpoint's trained weights one tensor at a time, then the checkpoint itself.

    Args:
        directory: of the checkpoint; names, shapes and dtypes stay.
        trained: functions that return the trained weight, by the name of the weight.

    Returns:
        The digests of everything written.

    Raises:
        NonFiniteWeightError: if a trained weight is not finite.
        InsufficientDiskError: if there is no room for a second copy of the weights.
        ValueError: if the checkpoint lacks one of the weights.
    """
    file_of, entries = locate_tensors(directory)
    if missing := trained.keys() - entries.keys():
        raise ValueError(f"{directory} has no weight {min(missing)}")
    ensure_disk_space(directory, sum(entry.end - entry.begin for entry in entries.values()))
    files = {name: MappedFile(directory / name) for name in sorted(set(file_of.values()))}
    merged = directory.with_name(f"{directory.name}-merged")
    with CheckpointWriter(merged) as writer:
        for name, entry in entries.items():
            tensor = files[file_of[name]].tensor(entry)
            merge = trained.get(name)
            writer.add({name: tensor if merge is None else _rounded(name, tensor, merge)})
        modeling.register()
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        writer.finish(config, directory)
    shutil.rmtree(directory)
    merged.replace(directory)
    return writer.record


def _rounded(name: str, stored: Tensor, merge: MergedWeight) -> Tensor:
    return check_finite(name, merge(stored).to("cpu", copy=False).to(stored.dtype))
