"""Statistics by which rotary pairs are selected without measured sensitivity (section 3c)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.hidden_states import LayerContext, LayerPass
from intraslice_core.rotary_statistics import (
    HeadEnergies,
    HeadEnergyAccumulator,
    RotaryAccumulator,
    RotaryStatistics,
)


def pair_statistics(
    dense: LayerWeights,
    layer_pass: LayerPass,
    context: LayerContext,
    on_inputs: Callable[[Tensor], None] | None = None,
) -> tuple[RotaryStatistics, HeadEnergies]:
    """Return statistics of queries and keys after RoPE, and energies before norm and RoPE.

    Args:
        dense: layer.
        layer_pass: pass of the hidden states through the layer.
        context: of the layer.
        on_inputs: called with every batch of the attention's inputs, (batch, sequence,
            hidden_size), for other statistics of the same pass.
    """
    settings = context.settings
    shape = {
        "num_key_value_heads": settings.num_key_value_heads,
        "pairs": settings.head_dim // 2,
        "prefix_length": layer_pass.prefix_length,
    }
    ranks = layer_pass.ranks
    rotated = RotaryAccumulator(**shape, device=context.device, ranks=ranks)
    projected = HeadEnergyAccumulator(
        **shape,
        num_attention_heads=settings.num_attention_heads,
        device=context.device,
        ranks=ranks,
    )
    for rows in layer_pass.batches():
        hidden = layer_pass.compressed(rows)
        normed = decoder_layer.attention_inputs(hidden, dense, settings)
        if on_inputs is not None:
            on_inputs(normed)
        heads = decoder_layer.queries_and_keys(normed, dense)
        projected.add(*heads)
        rotated.add(*decoder_layer.normed_and_rotated(*heads, dense, settings, context.rotary))
    return rotated.statistics(), projected.energies()
