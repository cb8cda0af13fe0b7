"""Compression of one layer that loses a whole module; the dense hidden states still pass it."""

from __future__ import annotations

from torch import Tensor

from intraslice_core import slicing
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.hidden_states import LayerContext, LayerPass
from intraslice_core.refit import ModuleOutcome


def remove_attention(
    dense: LayerWeights, layer_pass: LayerPass, context: LayerContext
) -> tuple[Tensor, LayerWeights, ModuleOutcome]:
    """Remove the attention of a layer.

    Returns:
        No rotary pairs, the layer as it will be saved, and the empty measurements.
    """
    layer_pass.skip()
    restored = layer_pass.restore_dense("attention")
    for rows in layer_pass.batches():
        layer_pass.advance_dense(rows, restored, layer_pass.after_attention, "attention")
    layer_pass.keep_dense("attention", restored)
    weights = slicing.rounded_to(slicing.remove_attention(dense), context.stored_dtype)
    return slicing.no_pairs(context.device), weights, ModuleOutcome(module="attention")


def remove_mlp(
    weights: LayerWeights, layer_pass: LayerPass, context: LayerContext
) -> tuple[LayerWeights, ModuleOutcome]:
    """Remove the MLP of a layer; both hidden states advance as where it is compressed.

    Args:
        weights: layer with its attention compressed.
        layer_pass: pass of the hidden states through the layer.
        context: of the layer.
    """
    restored = layer_pass.restore_dense("mlp")
    for rows in layer_pass.batches():
        if not context.settings.parallel_block:
            hidden = layer_pass.compressed(rows)
            layer_pass.store_compressed(rows, layer_pass.after_attention(hidden, weights))
        layer_pass.advance_dense(rows, restored, layer_pass.after_mlp)
    layer_pass.keep_dense("mlp", restored)
    weights = slicing.rounded_to(slicing.remove_mlp(weights), context.stored_dtype)
    return weights, ModuleOutcome(module="mlp")
