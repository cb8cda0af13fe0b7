"""The loop over layers of method `slicegpt`, which carries a basis from each layer to the next."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.families.canonical import EMBEDDING, EMBEDDING_SHORTCUT, POSITIONS
from intraslice_core.layer_loop import LayerLoop, layer_report
from intraslice_core.plan import ResidualWidths
from intraslice_core.residual_basis import StreamMoment, centred, writing_columns
from intraslice_core.residual_layer import ResidualSlicer, SlicedStates
from intraslice_core.resume_state import FinishedLayer

_TABLE_ROWS = 16_384
"""Rows of a table that are projected at once."""


class ResidualLoop(LayerLoop):
    """Moves the hidden states through the layers, slicing the residual stream of each."""

    _hidden_states: SlicedStates
    _basis: Tensor
    """Basis of the next layer's input, (hidden_size, width), float32."""
    _embedding_columns: Tensor
    """Columns that embeddings are projected on, (hidden_size, width), float64."""

    def outer_tensors(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return the result's tensors for a tensor outside the layers, by canonical name.

        Embeddings and positions are projected on the basis of the first layer's input. A tied
        table stays as it is for the output head, and the projection becomes a tensor of its own.
        """
        columns = self._embedding_columns
        if name == EMBEDDING and self._work.geometry.tie_word_embeddings:
            return {name: tensor, EMBEDDING_SHORTCUT: columns.mT}
        if name in (EMBEDDING, POSITIONS):
            return {name: _projected(tensor, columns)}
        return super().outer_tensors(name, tensor)

    def finish(self, layer: int) -> FinishedLayer:
        """Return the layer as it will be saved, and move the hidden states past it."""
        finished = super().finish(layer)
        if finished.basis is not None:
            self._basis = finished.basis.to(self._work.device)
        return finished

    def _embed(self, tokens: Tensor, left_out: int) -> SlicedStates:
        """Return the embedded sequences in the basis of their leading principal components."""
        work, layers = self._work, self._layers
        norm_type = work.canonical["norm_type"]
        moment = StreamMoment(work.geometry.hidden_size, work.device, work.ranks)
        samples, tokens = len(tokens), tokens[work.ranks.share(len(tokens))]
        for sequence in tokens:
            embedded = layers.embed(sequence).to(work.device)
            moment.add(centred(embedded, norm_type))
        first = self._widths(0).attention
        self._basis = moment.basis(first).columns
        self._embedding_columns = writing_columns(self._basis, norm_type)
        widths = [self._widths(layer) for layer in range(work.geometry.num_hidden_layers)]
        widest = max(max(layer.attention, layer.mlp) for layer in widths)
        buffer = work.memory.empty((*tokens.shape, widest), work.dtype).zero_()
        matrix = self._embedding_columns.mT.to(work.stored_dtype).to(work.dtype)
        for row, sequence in enumerate(tokens):
            embedded = layers.embed(sequence).to(work.device)
            buffer[row, :, :first] = F.linear(embedded, matrix).to(buffer.device)
        return SlicedStates(
            compressed=buffer[..., :first],
            dense=None,
            prefix_length=len(work.prefix),
            left_out=left_out,
            samples=samples,
            buffer=buffer,
        )

    def _widths(self, layer: int) -> ResidualWidths:
        widths = self._shapes.plan.layers[layer].residual
        assert widths is not None  # the pipeline takes this loop for sliced streams only
        return widths

    def _compress(self, layer: int) -> FinishedLayer:
        widths, plan = self._widths(layer), self._shapes.plan.layers[layer]
        sites = f"{widths.attention}, {widths.mlp}"
        message = f"residual stream {self._work.geometry.hidden_size}→{sites}"
        outcome, basis = self._slicer(layer, message, self._layers.weights(layer)).run()
        self._require_finite(layer)
        return FinishedLayer(
            tensors=self._stored(layer, outcome.weights),
            kept_pairs=outcome.kept_pairs,
            report=layer_report(layer, plan, outcome),
            basis=None if basis is None else basis.cpu(),
        )

    def _replay(self, layer: int, finished: FinishedLayer) -> None:
        dense = self._layers.weights(layer)
        self._slicer(layer, "resumed", dense).replay(self._weights(layer, finished, dense))
        self._require_finite(layer)

    def _slicer(self, layer: int, message: str, dense: LayerWeights) -> ResidualSlicer:
        return ResidualSlicer(
            dense,
            self._shapes.plan.layers[layer],
            self._basis,
            self._hidden_states,
            self._context(layer, message),
            is_last=layer == self._work.geometry.num_hidden_layers - 1,
        )


def _projected(table: Tensor, columns: Tensor) -> Tensor:
    """Return a table (rows, hidden_size) times the columns, in its dtype, on the CPU."""
    rows = (slice(start, start + _TABLE_ROWS) for start in range(0, len(table), _TABLE_ROWS))
    parts = [(table[part].to(columns) @ columns).to("cpu", table.dtype) for part in rows]
    return torch.cat(parts)
