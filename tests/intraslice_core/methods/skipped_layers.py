"""Dense models, in their own classes, whose forward pass skips layers; and their influences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.intraslice_core.methods.masked_models import loaded, logits
from tests.intraslice_core.tiny_models import decoder_layers, save_checkpoint, tiny_family_model

IDLE = 1
"""Layer that changes the hidden states little."""


def idle_checkpoint(directory: Path, variant: str, factor: float = 0.3) -> Path:
    """Save a tiny model of a family whose layer `IDLE` changes the hidden states little."""
    model = tiny_family_model(variant)
    _make_idle(model, factor)
    return save_checkpoint(model, directory)


def _make_idle(model: PreTrainedModel, factor: float) -> None:
    plus_one = model.config.model_type in ("gemma2", "gemma3_text", "nemotron")
    with torch.no_grad():
        for name, parameter in decoder_layers(model)[IDLE].named_parameters():
            if parameter.dim() == 1 and name.endswith("weight") and plus_one:
                parameter.fill_(-0.97)  # norms whose weights are stored less 1
            else:
                parameter.mul_(factor if parameter.dim() > 1 else 0.1 * factor)


@contextmanager
def skipping(model: nn.Module, layers: set[int]) -> Iterator[None]:
    """Let the forward pass of some layers return its input."""
    modules = [decoder_layers(model)[layer] for layer in layers]
    for module in modules:
        module.forward = lambda hidden, *_, **__: hidden
    yield
    for module in modules:
        del module.forward


def logits_without(dense: Path, layers: set[int], tokens: Tensor) -> Tensor:
    """Return the logits of a dense checkpoint whose forward pass skips layers."""
    model = loaded(dense)
    with skipping(model, layers):
        return logits(model, tokens)


def hidden_states(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Return the input of every layer and the output of the last, before the final norm."""
    states: list[Tensor] = []
    layers = decoder_layers(model)
    handles = [
        layer.register_forward_pre_hook(
            lambda _module, arguments: states.append(arguments[0].detach().double())
        )
        for layer in layers
    ]
    handles.append(
        layers[-1].register_forward_hook(
            lambda _module, _arguments, out: states.append(out.detach().double())
        )
    )
    logits(model, tokens)
    for handle in handles:
        handle.remove()
    return states


def turn(first: Tensor, second: Tensor) -> float:
    """Return one minus the mean cosine of hidden states, one token at a time."""
    rows = zip(first.flatten(0, 1), second.flatten(0, 1), strict=True)
    cosines = [float(a @ b) / (float(a @ a) * float(b @ b)) ** 0.5 for a, b in rows]
    return 1.0 - sum(cosines) / len(cosines)
