"""Orders of units without new bases: by measured costs, or by a trained solution path (SPP).

The rest of the engine selects by `LayerSensitivity`. A value dimension that stays as it is is a
direction along its coordinate; a trained order takes the place of the measured one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.sensitivity.layer_sensitivity import (
    LayerSensitivity,
    OrderedPairsSensitivity,
)
from intraslice_core.sensitivity.predicted_losses import pair_losses


@dataclass(frozen=True, kw_only=True)
class UnitRanks:
    """Ranks of one layer's units in a trained order over all units; lower ones are removed first.

    Tensors are float64.
    """

    pairs: Tensor
    """(num_key_value_heads, rotary_pairs)."""
    values: Tensor
    """(num_key_value_heads, head_dim)."""
    neurons: Tensor
    """(intermediate_size,)."""


def without_new_bases(layer: LayerSensitivity) -> LayerSensitivity:
    """Return the sensitivity of a layer whose value dimensions and pairs are selected as they are.

    Args:
        layer: measured with value dimensions.

    Raises:
        NumericalError: if the pairs' moment cannot be factorised.
    """
    assert layer.value_order is not None
    assert layer.value_costs is not None
    losses = layer.pair_losses
    if layer.query_directions is not None:
        losses = pair_losses(layer.pair_moment)
    removed = torch.cat((layer.value_costs.new_zeros(1), layer.value_costs.cumsum(0)))
    shares = layer.value_costs.flip(0) / len(layer.value_order)
    return replace(
        layer,
        value_directions=_coordinates(layer.value_order),
        value_spectrum=shares.expand(layer.value_order.shape).contiguous(),
        value_losses=removed.flip(0),
        pair_losses=losses,
        query_directions=None,
        key_directions=None,
    )


def with_trained_order(layer: LayerSensitivity, ranks: UnitRanks) -> OrderedPairsSensitivity:
    """Return the sensitivity of a layer that removes units by their ranks.

    Predicted losses stay those of the measured order.

    Args:
        layer: from `without_new_bases`.
        ranks: of the layer's units.
    """
    value_order = ranks.values.argsort(dim=-1, stable=True)
    changed = replace(
        layer,
        value_directions=_coordinates(value_order),
        value_order=value_order,
        neuron_order=ranks.neurons.argsort(stable=True),
    )
    return OrderedPairsSensitivity(
        **vars(changed), pair_order=ranks.pairs.argsort(dim=-1, stable=True)
    )


def _coordinates(order: Tensor) -> Tensor:
    """Return unit columns, the last removed dimension first, (groups, head_dim, head_dim).

    Args:
        order: dimensions, first removed first, (groups, head_dim), int64.
    """
    identity = torch.eye(order.shape[1], dtype=WORKING_DTYPE, device=order.device)
    return identity[order.flip(-1)].mT.contiguous()
