"""Slicing of the residual stream in one layer (SliceGPT, arXiv 2401.15024).

Order: fold the norm and the basis of the layer's input into q, k and v → basis of the stream after
the attention → output projection and shortcut in it → advance the hidden states past the attention
→ the same for the MLP. The hidden states are those of the sliced model as it will be saved; the
stream that a basis is computed of is not yet sliced there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import decoder_layer, slicing
from intraslice_core.decoder_layer import LayerWeights, Linear, Norm
from intraslice_core.hidden_states import HiddenStates, LayerContext, LayerPass
from intraslice_core.layer_compressor import LayerOutcome
from intraslice_core.plan import LayerPlan, ResidualWidths
from intraslice_core.refit import ModuleOutcome, errors_located_at
from intraslice_core.residual_basis import (
    Basis,
    StreamMoment,
    centred,
    in_dense_basis,
    reading,
    shortcut,
    sliced_settings,
    unit_norm,
    writing,
    writing_columns,
)


@dataclass(kw_only=True)
class SlicedStates(HiddenStates):
    """Hidden states whose width changes from site to site, in storage for the widest."""

    buffer: Tensor
    """(samples, sequence, largest width); `compressed` is its beginning."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole storage, whose layout is the same at every site."""
        return {"compressed": self.buffer}

    def part(self, width: int) -> Tensor:
        """Return the storage of hidden states of a width, (samples, sequence, width)."""
        return self.buffer[..., :width]


class ResidualSlicer:
    """Slices the residual stream in one layer and moves the hidden states past the layer.

    Args:
        dense: weights of the dense layer.
        plan: sizes of the layer.
        basis: of the layer's input, (hidden_size, width), float32; not read by `replay`.
        states: hidden states at the layer's input.
        context: other inputs.
        is_last: whether the layer is the last one, whose output is dense.
    """

    def __init__(
        self,
        dense: LayerWeights,
        plan: LayerPlan,
        basis: Tensor,
        states: SlicedStates,
        context: LayerContext,
        *,
        is_last: bool,
    ) -> None:
        assert plan.residual is not None  # only plans of a sliced residual stream come here
        self._dense = dense
        self._widths: ResidualWidths = plan.residual
        self._basis = basis
        self._states = states
        self._norm_type = context.settings.norm_type
        self._hidden_size = dense.attention_output.weight.shape[0]
        settings = sliced_settings(context.settings, self._hidden_size)
        self._context = replace(context, settings=settings)
        self._pass = LayerPass(dense, states, self._context)
        self._is_last = is_last
        states.compressed = states.part(self._widths.attention)

    def run(self) -> tuple[LayerOutcome, Tensor | None]:
        """Slice the layer; return it and the basis of its output, None where that is dense.

        Raises:
            NumericalError: naming the layer and the module.
        """
        started, layer = time.perf_counter(), self._context.layer
        with errors_located_at(layer, "attention"):
            weights, between = self._slice_attention()
        with errors_located_at(layer, "mlp"):
            weights, after = self._slice_mlp(weights, between.columns)
        total, groups = self._context.settings.head_dim // 2, weights.num_key_value_heads
        energy = None if after is None else after.explained_energy
        outcome = LayerOutcome(
            weights=weights,
            kept_pairs=torch.arange(total).expand(groups, total),
            attention=ModuleOutcome(module="attention", explained_energy=between.explained_energy),
            mlp=ModuleOutcome(module="mlp", explained_energy=energy),
            seconds=time.perf_counter() - started,
        )
        return outcome, None if after is None else after.columns

    def replay(self, weights: LayerWeights) -> None:
        """Move the hidden states past a layer that an interrupted run has sliced."""
        self._advance(self._widths.mlp, weights, self._pass.after_attention)
        if not self._is_last:
            self._advance(self._widths.output, weights, self._pass.after_mlp)

    # -- modules ---------------------------------------------------------------------------

    def _slice_attention(self) -> tuple[LayerWeights, Basis]:
        """Return the layer with a sliced attention, and the basis of the stream after it."""
        dense, widths = self._dense, self._widths
        weights = self._as_stored(
            replace(
                dense,
                input_norm=unit_norm(widths.attention, dense.query.weight),
                mlp_norm=unit_norm(widths.mlp, dense.query.weight),
                query=self._reading(dense.query, dense.input_norm, self._basis),
                key=self._reading(dense.key, dense.input_norm, self._basis),
                value=self._reading(dense.value, dense.input_norm, self._basis),
            )
        )

        def contribution(hidden: Tensor) -> Tensor:
            settings, rotary = self._context.settings, self._context.rotary
            return decoder_layer.attention(hidden, weights, settings, rotary)

        between = self._basis_after(contribution, self._basis, widths.mlp)
        columns = writing_columns(between.columns, self._norm_type)
        weights = self._as_stored(
            replace(
                weights,
                attention_output=writing(dense.attention_output, columns),
                attention_shortcut=shortcut(self._basis, between.columns, dense.query.weight),
            )
        )
        self._advance(widths.mlp, weights, self._pass.after_attention)
        return weights, between

    def _slice_mlp(self, weights: LayerWeights, basis: Tensor) -> tuple[LayerWeights, Basis | None]:
        """Return the layer with a sliced MLP, and the basis of its output, None where dense.

        Args:
            weights: layer with a sliced attention.
            basis: of the stream after the attention, (hidden_size, width).
        """
        dense, widths = self._dense, self._widths
        gate = dense.gate and self._reading(dense.gate, dense.mlp_norm, basis)
        up = self._reading(dense.up, dense.mlp_norm, basis)
        weights = self._as_stored(replace(weights, gate=gate, up=up))
        if self._is_last:
            past_mlp = shortcut(basis, None, dense.up.weight)
            return self._as_stored(replace(weights, mlp_shortcut=past_mlp)), None

        def contribution(hidden: Tensor) -> Tensor:
            return decoder_layer.mlp(hidden, weights, self._context.settings)

        after = self._basis_after(contribution, basis, widths.output)
        columns = writing_columns(after.columns, self._norm_type)
        weights = self._as_stored(
            replace(
                weights,
                mlp_output=writing(dense.mlp_output, columns),
                mlp_shortcut=shortcut(basis, after.columns, dense.up.weight),
            )
        )
        self._advance(widths.output, weights, self._pass.after_mlp)
        return weights, after

    # -- parts of both -----------------------------------------------------------------------

    @staticmethod
    def _reading(linear: Linear, norm: Norm | None, basis: Tensor) -> Linear:
        assert norm is not None  # families without norms of inputs are rejected before
        return reading(linear, norm, basis)

    def _basis_after(
        self, contribution: Callable[[Tensor], Tensor], basis: Tensor, width: int
    ) -> Basis:
        """Return the basis of the stream after a module that writes to the dense stream.

        Args:
            contribution: what the module adds to the sliced hidden states that it reads.
            basis: of the stream before the module, (hidden_size, width before).
            width: of the stream after it.
        """
        moment = StreamMoment(self._hidden_size, self._context.device, self._pass.ranks)
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            stream = in_dense_basis(hidden, basis) + contribution(hidden)
            moment.add(centred(stream, self._norm_type))
        return moment.basis(width, self._pass.owner)

    def _advance(
        self, width: int, weights: LayerWeights, after: Callable[[Tensor, LayerWeights], Tensor]
    ) -> None:
        """Move the hidden states past a sliced module, after which they have another width."""
        target = self._states.part(width)
        for rows in self._pass.batches():
            self._pass.store_into(target, rows, after(self._pass.compressed(rows), weights))
        self._states.compressed = target

    def _as_stored(self, weights: LayerWeights) -> LayerWeights:
        return slicing.rounded_to(weights, self._context.stored_dtype)
