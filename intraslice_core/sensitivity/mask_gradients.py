"""Gradients of the next-token loss at masks of all layers, one layer's graph at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.errors import NumericalError
from intraslice_core.sensitivity.masked_layer import Masks


@dataclass(frozen=True, kw_only=True)
class MaskGradients:
    """Mean next-token loss of a batch and its gradients at all masks."""

    loss: float
    layers: tuple[tuple[Tensor, ...], ...]
    """Gradients of every layer's masks, in their order."""


def mask_gradients(
    layers: DenseLayers,
    tokens: Tensor,
    masks: Sequence[Masks],
    *,
    prefix_length: int = 0,
) -> MaskGradients:
    """Compute the loss and its gradients by one forward and one backward pass.

    The backward pass computes each layer again from the hidden states before it.

    Args:
        layers: the dense model.
        tokens: one batch, (sequences, length), int64.
        masks: of all layers.
        prefix_length: positions of the prefix at the beginning of every sequence, which are not
            scored.

    Raises:
        NumericalError: if an activation or a gradient is not finite, naming the layer.
    """
    # Tensors created in inference mode cannot be part of a graph, so that all are made here.
    with torch.inference_mode(False), torch.no_grad():
        tokens = tokens.clone()
        states = [layers.embed(tokens).to(layers.device)]
        for layer, layer_masks in enumerate(masks):
            states.append(_forward(layers, layer, states[-1], layer_masks))
            if not torch.isfinite(states[-1]).all():
                raise NumericalError("an activation is NaN or infinite", layer=layer)
        loss, gradient = _loss_gradient(layers, states.pop(), tokens, prefix_length)
        gradients = []
        for layer in reversed(range(len(masks))):
            gradient, own = _backward(layers, layer, states.pop(), gradient, masks[layer])
            gradients.append(own)
        return MaskGradients(loss=loss, layers=tuple(reversed(gradients)))


def _forward(layers: DenseLayers, layer: int, hidden: Tensor, masks: Masks) -> Tensor:
    """Return the output of a masked layer."""
    rotary = layers.rotary(layer, hidden.shape[1])
    return masks.forward(hidden, layers.weights(layer), layers.settings(layer), rotary)


def _backward(
    layers: DenseLayers, layer: int, hidden: Tensor, at_output: Tensor, masks: Masks
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the gradients at a layer's input and at its masks.

    Raises:
        NumericalError: if a gradient is not finite, naming the layer.
    """
    with torch.enable_grad():
        inputs = hidden.detach().requires_grad_(True)
        leaves = [mask.detach().clone().requires_grad_(True) for mask in masks.tensors]
        output = _forward(layers, layer, inputs, masks.with_tensors(leaves))
        at_input, *gradients = torch.autograd.grad(output, (inputs, *leaves), at_output)
    if not all(torch.isfinite(gradient).all() for gradient in gradients):
        raise NumericalError("the gradient of a mask is NaN or infinite", layer=layer)
    return at_input, tuple(gradients)


def _loss_gradient(
    layers: DenseLayers, hidden: Tensor, tokens: Tensor, prefix_length: int
) -> tuple[float, Tensor]:
    """Return the mean loss and its gradient at the last layer's output, shape of `hidden`.

    Args:
        layers: the dense model, whose output head is used.
        hidden: output of the last layer, (sequences, length, hidden_size).
        tokens: (sequences, length), int64.
        prefix_length: positions that are not scored.
    """
    gradient, total = torch.zeros_like(hidden), 0.0
    first, length = max(prefix_length, 1), tokens.shape[1]
    scored = len(tokens) * (length - first)
    for row in range(len(tokens)):
        for start in range(first - 1, length - 1, layers.logit_rows):
            end = min(start + layers.logit_rows, length - 1)
            targets = tokens[row, start + 1 : end + 1]
            with torch.enable_grad():
                leaf = hidden[row, start:end].detach().clone().requires_grad_(True)
                logits = layers.logits(leaf)
                loss = F.cross_entropy(logits, targets.to(logits.device), reduction="sum") / scored
                (gradient[row, start:end],) = torch.autograd.grad(loss, leaf)
            total += float(loss)
    return total, gradient
