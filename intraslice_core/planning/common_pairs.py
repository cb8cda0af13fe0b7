"""One subset of rotary pairs for the whole model: what stock runtimes have one table for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from intraslice_core.choices import AlikeKnowledge, LayerKnowledge
from intraslice_core.selection.joint_pairs import eliminate_alike


def with_common_pairs(layers: Sequence[LayerKnowledge]) -> tuple[AlikeKnowledge, ...]:
    """What is known of every layer, if all keep the same pairs; predicted losses are of those.

    Raises:
        NumericalError: if a layer's pairs cannot be judged.
    """
    moments = [layer.pair_moment for layer in layers]
    common = eliminate_alike(torch.cat(moments))
    costs = torch.split(common.removal_cost, [len(moment) for moment in moments])
    return tuple(
        AlikeKnowledge(
            **vars(replace(layer, pair_losses=_losses(layer.pair_losses, cost.sum(0)))),
            pair_order=common.order,
        )
        for layer, cost in zip(layers, costs, strict=True)
    )


def _losses(free: Tensor, cost: Tensor) -> Tensor:
    """Loss by the number kept, (pairs + 1,), from the removals' costs; no pairs cost what they did.

    Args:
        free: the same where the layer chooses for itself, (pairs + 1,).
        cost: of the removals in their order, (pairs - 1,).
    """
    removed = torch.cat((cost.new_zeros(1), cost.cumsum(0)))
    kept = 0.5 * removed.flip(0)
    return torch.cat((torch.maximum(free[:1].to(kept), kept[:1]), kept))
