"""Rotary pairs that all layers have in common, for one shape (docs/method.md, section 3c)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from intraslice_core.selection.rotary_pairs import eliminate_shared_pairs
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity, SharedPairsSensitivity

_CPU = torch.device("cpu")


def with_shared_pairs(
    layers: Sequence[LayerSensitivity], device: torch.device = _CPU
) -> tuple[SharedPairsSensitivity, ...]:
    """Return the sensitivity of layers that all keep the same rotary pairs.

    Predicted losses of pairs are those of the shared order. Energies are those of an average head,
    so that the norms of q and k, which slicing corrects by them, stay the same for all heads.

    Args:
        layers: sensitivity of all layers, on the CPU.
        device: compute device.

    Raises:
        NumericalError: if a pairs' moment is not finite or cannot be factorised.
    """
    # Layers without RoPE have bases of their own, unless queries and keys are normed.
    sharing = [number for number, layer in enumerate(layers) if layer.query_directions is None]
    moments = [layers[number].pair_moment for number in sharing]
    if not sharing:
        moments = [layer.pair_moment for layer in layers]
    shared = eliminate_shared_pairs(torch.cat(moments).to(device))
    costs = torch.split(shared.removal_cost.cpu(), [len(moment) for moment in moments])
    losses = [layer.pair_losses for layer in layers]
    for number, cost in zip(sharing, costs, strict=False):
        losses[number] = _shared_losses(losses[number], cost.sum(0))
    return tuple(
        SharedPairsSensitivity(
            **vars(
                replace(
                    layer,
                    pair_losses=pair_losses,
                    query_energy=_average_energy(layer.query_energy),
                    key_energy=_average_energy(layer.key_energy),
                )
            ),
            pair_order=shared.order.cpu(),
        )
        for layer, pair_losses in zip(layers, losses, strict=True)
    )


def _average_energy(energy: Tensor) -> Tensor:
    """Return the mean share of each pair in its head's energy, for all heads, (heads, pairs)."""
    shares = energy / energy.sum(1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    return shares.mean(0, keepdim=True).expand_as(energy).contiguous()


def _shared_losses(free: Tensor, cost: Tensor) -> Tensor:
    """Return losses by the number of pairs kept, (pairs + 1,), from the costs of a shared order.

    Args:
        free: losses where the layer chooses its own pairs, (pairs + 1,); used for 0 pairs.
        cost: removal costs in order, (pairs - 1,).
    """
    removed = torch.cat((cost.new_zeros(1), cost.cumsum(0)))
    losses = 0.5 * removed.flip(0)
    return torch.cat((torch.maximum(free[:1].to(losses), losses[:1]), losses))
