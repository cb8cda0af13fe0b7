"""Compression of one layer by dimensions of the residual stream (DISP-LLM; docs/methods.md).

A module reads some of the normed dimensions and adds to some dimensions of the residual stream,
each module its own; the MLP also loses neurons. Order: select what the attention reads and refit
queries, keys and values → refit the output projection and select what it writes → the same for the
MLP, with the neurons in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from intraslice_core import compensation, decoder_layer, linalg, slicing
from intraslice_core.compensation import (
    OutputSpace,
    SplitAccumulator,
    attention_space,
    mlp_space,
)
from intraslice_core.decoder_layer import LayerWeights, Linear
from intraslice_core.hidden_states import LayerContext, LayerPass
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.plan import LayerPlan, Module
from intraslice_core.refit import ModuleOutcome, Refit, errors_located_at
from intraslice_core.selection import neurons, spectra
from intraslice_core.selection.neurons import NeuronChoice, eliminate_neurons
from intraslice_core.statistics import Moments, second_moment_sum

_Result = TypeVar("_Result")

_READERS: dict[Module, tuple[str, ...]] = {
    "attention": ("query", "key", "value"),
    "mlp": ("gate", "up"),
}
"""Projections that read the same normed hidden states."""
_READS: dict[Module, spectra.Dimension] = {"attention": "attention reads", "mlp": "MLP reads"}
_WRITES: dict[Module, spectra.Dimension] = {"attention": "attention writes", "mlp": "MLP writes"}


@dataclass(frozen=True, kw_only=True)
class ResidualPartsOutcome:
    """A layer of fewer reads, writes and neurons, and its measurements."""

    weights: LayerWeights
    attention: ModuleOutcome
    mlp: ModuleOutcome


def compress_residual_parts(
    dense: LayerWeights, plan: LayerPlan, layer_pass: LayerPass, context: LayerContext
) -> ResidualPartsOutcome:
    """Cut a layer to the plan's sizes and move the hidden states past it.

    Raises:
        NumericalError: naming layer and module.
    """
    return _Compression(dense, plan, layer_pass, context).run()


class _Compression:
    """Compression of one layer."""

    def __init__(
        self, dense: LayerWeights, plan: LayerPlan, layer_pass: LayerPass, context: LayerContext
    ) -> None:
        self._dense, self._plan = dense, plan
        self._pass, self._context = layer_pass, context
        hidden = dense.attention_output.weight.shape[0]
        sizes = plan.residual_parts
        self._reads: dict[Module, int] = {
            "attention": sizes.attention_reads if sizes else hidden,
            "mlp": sizes.mlp_reads if sizes else hidden,
        }
        self._writes: dict[Module, int] = {
            "attention": sizes.attention_writes if sizes else hidden,
            "mlp": sizes.mlp_writes if sizes else hidden,
        }

    def run(self) -> ResidualPartsOutcome:
        layer = self._context.layer
        with errors_located_at(layer, "attention"):
            weights, attention = self._compress_attention()
        with errors_located_at(layer, "mlp"):
            weights, mlp = self._compress_mlp(weights)
            self._pass.advance_mlp(weights)
        return ResidualPartsOutcome(weights=weights, attention=attention, mlp=mlp)

    def _compress_attention(self) -> tuple[LayerWeights, ModuleOutcome]:
        settings, rotary = self._context.settings, self._context.rotary

        def inputs(rows: slice) -> Tensor:
            hidden = self._pass.compressed(rows)
            return decoder_layer.attention_inputs(hidden, self._dense, settings)

        def inner(rows: slice, weights: LayerWeights) -> Tensor:
            return decoder_layer.attention_inner(inputs(rows), weights, settings, rotary)

        weights, read = self._with_reads(self._dense, "attention", inputs)
        space = attention_space(self._dense, settings)
        moments = self._moments(space, weights, inner, self._pass.compressed)
        outcome, fitted = self._refit().module(
            "attention", *moments, space.rows(), weights is self._dense
        )
        output, written = self._computed(
            lambda: self._with_writes("attention", space, moments[0], fitted)
        )
        outcome = replace(outcome, spectra=(*read, *written))
        return self._as_stored(replace(weights, attention_output=output)), outcome

    def _compress_mlp(self, weights: LayerWeights) -> tuple[LayerWeights, ModuleOutcome]:
        """Compress the MLP of a layer whose attention is compressed.

        Unless both modules are parallel, the hidden states move past the attention.
        """
        settings = self._context.settings

        def inputs(rows: slice) -> Tensor:
            hidden = self._pass.compressed(rows)
            if not settings.parallel_block:
                hidden = self._pass.after_attention(hidden, weights)
                self._pass.store_compressed(rows, hidden)
            return decoder_layer.mlp_inputs(hidden, self._dense, settings)

        def inner(rows: slice, own: LayerWeights) -> Tensor:
            hidden = self._pass.compressed(rows)
            return decoder_layer.mlp_inner(hidden, own, settings)

        def before(rows: slice) -> Tensor:
            hidden = self._pass.compressed(rows)
            if settings.parallel_block:
                hidden = self._pass.after_attention(hidden, weights)
            return hidden

        reading, read = self._with_reads(weights, "mlp", inputs)
        space, refit = mlp_space(self._dense, settings), self._refit()
        fit, held_out = self._moments(space, reading, inner, before)
        choice = self._computed(lambda: self._choose_neurons(refit, fit, held_out, space))
        width = self._dense.up.weight.shape[0]
        constant = choice.kept.new_tensor([width] * (self._dense.mlp_output.bias is not None))
        remaining = torch.cat((choice.kept, constant))
        fit = compensation.select(fit, remaining)
        held_out = held_out and compensation.select(held_out, remaining)
        intact = reading is weights and len(choice.kept) == width
        outcome, fitted = refit.module("mlp", fit, held_out, space.rows()[remaining], intact)
        output, written = self._computed(lambda: self._with_writes("mlp", space, fit, fitted))
        shown = [*read, *written]
        if len(choice.kept) < width and self._context.residual_parts is None:
            shown.append(
                spectra.score_spectrum("MLP neurons", "score", choice.score, len(choice.kept))
            )
        sliced = replace(slicing.slice_neurons(reading, choice.kept), mlp_output=output)
        return self._as_stored(sliced), replace(outcome, spectra=tuple(shown))

    # -- reads -----------------------------------------------------------------------------

    def _with_reads(
        self, weights: LayerWeights, module: Module, inputs: Callable[[slice], Tensor]
    ) -> tuple[LayerWeights, list[spectra.Spectrum]]:
        """Return the layer whose module reads the dimensions that the others cannot replace.

        They are chosen by Optimal Brain Surgeon on `C = E[x̃ x̃ᵀ]` and the projections that read
        them, which are refitted to their own outputs.
        """
        keep = self._reads[module]
        hidden = self._dense.attention_output.weight.shape[0]
        if keep == hidden:
            for rows in self._pass.batches():
                inputs(rows)
            return weights, []
        named = {name: getattr(weights, name) for name in _READERS[module]}
        linears = {name: linear for name, linear in named.items() if linear is not None}
        has_bias = any(linear.bias is not None for linear in linears.values())
        moment = self._input_moment(inputs, has_bias)
        columns = torch.cat([_columns(linear, has_bias) for linear in linears.values()], 1)
        changed, shown = self._computed(lambda: self._refitted(module, linears, moment, columns))
        return self._as_stored(replace(weights, **changed)), shown

    def _refitted(
        self, module: Module, linears: Mapping[str, Linear], moment: Tensor, columns: Tensor
    ) -> tuple[dict[str, Any], list[spectra.Spectrum]]:
        """Return the projections that read the dimensions to keep, by name.

        Args:
            module: that reads.
            linears: its dense projections by name.
            moment: from `_input_moment`.
            columns: all projections by rows of inputs, (inputs [+ 1], outputs), float64.
        """
        keep, hidden = self._reads[module], self._dense.attention_output.weight.shape[0]
        selected = self._trained(f"{module}_reads")
        choice = None
        if selected is None:
            choice = self._eliminate(moment[:hidden, :hidden], columns[:hidden], keep)
        dimensions = selected if choice is None else choice.kept
        assert dimensions is not None
        has_bias = len(columns) > hidden
        regressors = torch.cat((dimensions, dimensions.new_tensor([hidden] * has_bias)))
        fitted = self._fit_columns(moment, columns, regressors)
        parts = torch.split(fitted, [linear.weight.shape[0] for linear in linears.values()], 1)
        changed: dict[str, Any] = {
            name: replace(slicing.output_projection(part, linear), reads=dimensions)
            for (name, linear), part in zip(linears.items(), parts, strict=True)
        }
        shown: list[spectra.Spectrum] = []
        if choice is not None:
            shown = [spectra.score_spectrum(_READS[module], "score", choice.score, keep)]
        return changed, shown

    def _input_moment(self, inputs: Callable[[slice], Tensor], has_bias: bool) -> Tensor:
        """Return `E[x̃ x̃ᵀ]`, with a last entry of 1 for a bias, (hidden_size [+ 1], same)."""
        total: Tensor | None = None
        tokens = 0
        for rows in self._pass.batches():
            normed = inputs(rows).flatten(0, 1)
            if has_bias:
                normed = torch.cat((normed, torch.ones_like(normed[:, :1])), 1)
            products = second_moment_sum(normed, normed).to(WORKING_DTYPE)
            total = products if total is None else total + products
            tokens += len(normed)
        assert total is not None  # there is a batch
        self._pass.ranks.sum_([total])
        tokens = int(self._pass.ranks.totals([tokens])[0])
        return linalg.require_finite(total / tokens, "a second moment of a module's inputs")

    def _fit_columns(self, moment: Tensor, columns: Tensor, inputs: Tensor) -> Tensor:
        """Return the least squares of projections by some inputs, (inputs, outputs), float64."""
        prior, own = columns[inputs], moment[inputs][:, inputs]
        factor = linalg.damped_cholesky(own, self._context.method.damping_own[0])
        return prior + factor.solve(moment[inputs] @ columns - own @ prior)

    # -- writes and neurons ----------------------------------------------------------------

    def _with_writes(
        self, module: Module, space: OutputSpace, moments: Moments, fitted: Tensor
    ) -> tuple[Linear, list[spectra.Spectrum]]:
        """Return the output projection to the dimensions of most energy `E[Δx_j²]`.

        Args:
            module: that writes.
            space: output space of the dense projection.
            moments: of the inner activations.
            fitted: solution for all dimensions, (inner [+ 1], hidden_size).
        """
        keep, like = self._writes[module], space.output
        rows = space.unscaled(fitted)
        hidden = rows.shape[1]
        if keep == hidden:
            return slicing.output_projection(rows, like), []
        dimensions = self._trained(f"{module}_writes")
        shown: list[spectra.Spectrum] = []
        if dimensions is None:
            energy = (fitted * (moments.gram @ fitted)).sum(0)
            dimensions = neurons.keep_best_neurons(energy, keep).kept
            shown = [spectra.score_spectrum(_WRITES[module], "score", energy, keep)]
        written = slicing.output_projection(rows[:, dimensions], like)
        return replace(written, writes=dimensions, out_features=hidden), shown

    def _choose_neurons(
        self, refit: Refit, fit: Moments, held_out: Moments | None, space: OutputSpace
    ) -> NeuronChoice:
        """Return the neurons to keep, by Optimal Brain Surgeon on `E[u uᵀ]`."""
        width, keep = self._dense.up.weight.shape[0], self._plan.intermediate_size
        if keep == width:
            everything = torch.arange(width, device=self._context.device)
            return neurons.keep_best_neurons(torch.zeros_like(everything), width)
        selected = self._trained("neurons")
        if selected is not None:
            trained = torch.zeros(width, device=selected.device).index_fill_(0, selected, 1.0)
            return neurons.keep_best_neurons(trained, keep)
        gram = (fit if held_out is None else fit + held_out).gram[:width, :width]
        output = refit.dense_output(fit, held_out, space)[:width]
        return self._eliminate(gram, output, keep)

    def _trained(self, name: str) -> Tensor | None:
        """Return a trained selection, ascending, int64; None without training."""
        selections = self._context.residual_parts
        selected: Tensor | None = None if selections is None else getattr(selections, name)
        return selected

    def _eliminate(self, gram: Tensor, output: Tensor, keep: int) -> NeuronChoice:
        factor = linalg.damped_cholesky(gram, self._context.method.choice_damping)
        return eliminate_neurons(factor, output, keep)

    # -- moments ---------------------------------------------------------------------------

    def _moments(
        self,
        space: OutputSpace,
        weights: LayerWeights,
        inner: Callable[[slice, LayerWeights], Tensor],
        before: Callable[[slice], Tensor],
    ) -> tuple[Moments, Moments | None]:
        """Return moments of a module's inner activations with the dense module's output as target.

        Args:
            space: output space of the dense projection.
            weights: layer whose module reads some dimensions.
            inner: inner activations of a batch with the weights of a layer.
            before: hidden states of a batch that the module's contribution is added to.
        """
        accumulator = SplitAccumulator(
            space,
            self._context.device,
            own_is_linear=False,
            has_held_out=self._pass.has_held_out,
            prefix_length=self._pass.prefix_length,
            ranks=self._pass.ranks,
        )
        for rows in self._pass.batches():
            observation = space.observe(inner(rows, self._dense), inner(rows, weights))
            after = before(rows) + observation.added
            held_out = self._pass.is_held_out(rows)
            accumulator.add(observation, None, after, is_held_out=held_out)
        return accumulator.moments()

    def _refit(self) -> Refit:
        return Refit(
            self._context.method,
            leaves_out_sources=self._pass.leaves_out_sources,
            ranks=self._pass.ranks,
            owner=self._pass.owner,
        )

    def _computed(self, compute: Callable[[], _Result]) -> _Result:
        """Return what one rank computes, on all."""
        return self._pass.ranks.computed(self._pass.owner, compute)

    def _as_stored(self, weights: LayerWeights) -> LayerWeights:
        """Round the layer to the dtype of the saved model."""
        return slicing.rounded_to(weights, self._context.stored_dtype)


def _columns(linear: Linear, has_bias: bool) -> Tensor:
    """Return a projection by rows of inputs, its bias last, (inputs [+ 1], outputs), float64."""
    columns = linear.weight.mT.to(WORKING_DTYPE)
    if not has_bias:
        return columns
    assert linear.bias is not None  # the projections that read the same have all biases or none
    return torch.cat((columns, linear.bias.to(WORKING_DTYPE).unsqueeze(0)))
