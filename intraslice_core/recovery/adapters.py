"""Low-rank adapters on a model's linear maps, by the library `peft`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice_core.config import RecoveryConfig
from intraslice_core.errors import ConfigurationError

_ADAPTER = "default"
Parameters = Mapping[str, nn.Parameter]


def add_adapters(model: PreTrainedModel, config: RecoveryConfig) -> Parameters:
    """Put an adapter beside every linear map but the output head, in place.

    The head has none, because it may be the embedding, too. Nothing changes what the model
    computes before its first step: one of an adapter's two matrices is zero. Nothing but the
    adapters has a gradient afterwards.

    Returns:
        The adapters' parameters by name, float32; the same seed gives the same ones.

    Raises:
        ConfigurationError: if the model has no linear map left.
    """
    # Here, because it takes as long to import as a small model to load.
    from peft import LoraConfig, inject_adapter_in_model

    names = list(_linear_maps(model))
    if not names:
        raise ConfigurationError(
            "no layer has anything left that could be trained",
            field="compression.recover",
            hint="remove less, or leave it out",
        )
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names)  # type: ignore[arg-type]
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


def weight_changes(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """What the adapters add to each weight, computed when it is asked for.

    Returns:
        By the name of the weight in the model without adapters.
    """
    from peft.tuners.lora import LoraLayer

    def change_of(layer: LoraLayer) -> Callable[[], Tensor]:
        @torch.no_grad()
        def change() -> Tensor:
            # Adapters of linear maps have it; their common class does not say so.
            found: Tensor = layer.get_delta_weight(_ADAPTER)  # type: ignore[attr-defined]
            return found

        return change

    return {
        f"{name}.weight": change_of(module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def _linear_maps(model: PreTrainedModel) -> Iterator[str]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name
