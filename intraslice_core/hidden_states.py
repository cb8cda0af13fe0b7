"""Hidden states of the calibration sequences, dense and compressed, and their pass through a layer.

Both are advanced in place, one module of a layer at a time. They lie on the compute device where
they fit (`residency`), else in host memory, and batches are copied while others are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Rotary
from intraslice_core.methods import CompressionMethod
from intraslice_core.plan import Module
from intraslice_core.ranks import ALONE, Ranks
from intraslice_core.selection.residual_parts import ResidualPartSelections
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.statistics_cache import DenseStates
from intraslice_core.transfers import StagedTensor, transfers_for
from intraslice_core.unit_removal import LayerUnits

HELD_OUT_FRACTION = 8
"""Fraction of the calibration sequences, 1 in this many, held out to choose the damping."""

PASSES, RESIDUAL_PART_PASSES = 4, 5
"""Passes over the calibration sequences per layer; the second for methods that cut what modules
read and write of the residual stream."""

TOKENS_AT_ONCE = 1024
"""Tokens per batch on a CPU, at least one sequence.

Products of 1,024 rows are as fast as of more, and activations take less memory.
"""
KEPT_INNER_BYTES = 48 * 2**20
"""Inner activations of the sliced attention that are kept until its refit, in bytes.

Those of further batches are computed again.
"""

Advance = Callable[[Tensor, LayerWeights], Tensor]
"""Function from hidden states before a module, (batch, sequence, hidden_size), to those after."""


@dataclass(kw_only=True)
class HiddenStates:
    """Hidden states of this rank's calibration sequences, (samples, sequence, hidden_size)."""

    compressed: Tensor
    """Hidden states of the model compressed so far."""
    dense: Tensor | None
    """Hidden states of the dense model; None for methods that do not use them."""
    prefix_length: int = 0
    """Positions of the prefix at the beginning of every sequence."""
    left_out: int = 0
    """Number of last sequences that are of other calibration sources than those before them.

    0 where sequences are not sorted by source; see `group_sources`.
    """
    samples: int | None = None
    """Number of sequences of all ranks; None for those of this one alone."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that exist, by name; views, not copies."""
        tensors = {"compressed": self.compressed, "dense": self.dense}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """Inputs of a layer's compression besides its weights and the hidden states."""

    layer: int
    settings: LayerSettings
    rotary: Rotary
    method: CompressionMethod
    batch_size: int
    device: torch.device
    stored_dtype: torch.dtype
    """Dtype of the saved model; the compressed hidden states use weights rounded to it."""
    before_batch: Callable[[float], None]
    """Callback before each batch with the finished fraction of the layer; may raise to stop."""
    sensitivity: LayerSensitivity | None = None
    """Measured sensitivity of the dense layer; None to select by the compressed hidden states."""
    dense_states: DenseStates | None = None
    """Cache that shares the dense hidden states with runs at other ratios."""
    units: LayerUnits | None = None
    """Scores of heads and neurons, where they were measured on the dense model."""
    residual_parts: ResidualPartSelections | None = None
    """Trained selections of the residual stream and of neurons; None selects by moments."""
    adds_output_biases: bool = False
    """True if output projections get biases that the dense layer lacks."""
    ranks: Ranks = ALONE
    """Ranks that divide the calibration sequences among them."""


def group_sources(tokens: Tensor, groups: Tensor | None) -> tuple[Tensor, int]:
    """Sort sequences by group of sources, so that batches and moments are of one group each.

    Args:
        tokens: calibration, (samples, length), int64.
        groups: group of each sequence's source, 0 or 1, (samples,), int64; None without groups.

    Returns:
        The sequences of group 0, then those of group 1, each in their order, and the number of the
        latter for `HiddenStates.left_out`.
    """
    if groups is None:
        return tokens, 0
    return tokens[groups.argsort(stable=True)], int(groups.sum())


class LayerPass:
    """Moves both hidden states through one layer, batch by batch."""

    def __init__(self, dense: LayerWeights, states: HiddenStates, context: LayerContext) -> None:
        self._dense = dense
        self._passes = RESIDUAL_PART_PASSES if context.method.residual_parts else PASSES
        self._states = states
        self._context = context
        self._passes_done = 0
        self._following: slice | None = None
        self._transfers = transfers_for([*states.tensors().values()], context.device)
        self._stage()
        self._kept_inner: dict[int, Tensor] = {}
        self._kept_inner_bytes = 0

    # -- batches ---------------------------------------------------------------------------

    def batches(self) -> Iterator[slice]:
        """Yield batches of sequences; no batch mixes held-out sequences with others."""
        size, total = self._batch_size, self._states.compressed.shape[0]
        border = self._border
        batches = [
            *(slice(start, min(start + size, border)) for start in range(0, border, size)),
            *(slice(start, min(start + size, total)) for start in range(border, total, size)),
        ]
        self._stage()
        try:
            for rows, self._following in zip_longest(batches, batches[1:]):
                self._context.before_batch((self._passes_done + rows.start / total) / self._passes)
                yield rows
        finally:
            self._complete()
        self._passes_done += 1

    def _stage(self) -> None:
        """Let the next pass read the hidden states where they are now, and free copied batches."""
        dense, device = self._states.dense, self._context.device
        self._compressed = StagedTensor(self._states.compressed, device, self._transfers)
        self._dense_states = None if dense is None else StagedTensor(dense, device, self._transfers)

    def _complete(self) -> None:
        """Wait until hidden states in host memory are complete."""
        if self._transfers is not None:
            self._transfers.wait()
        self._following = None
        self._stage()

    @property
    def _batch_size(self) -> int:
        """Return the sequences per batch: the setting, on a CPU of at most `TOKENS_AT_ONCE`."""
        if self._context.device.type != "cpu":
            return self._context.batch_size
        at_once = max(TOKENS_AT_ONCE // self._states.compressed.shape[1], 1)
        return min(self._context.batch_size, at_once)

    def skip(self) -> None:
        """Count a pass as done, for progress."""
        self._passes_done += 1

    @property
    def prefix_length(self) -> int:
        """Return the positions of the prefix at the beginning of every sequence."""
        return self._states.prefix_length

    @property
    def has_held_out(self) -> bool:
        """Report whether some sequences have moments of their own to choose the damping."""
        return self._held_out_sequences > 0

    @property
    def leaves_out_sources(self) -> bool:
        """Report whether these sequences are a group of sources, not a part of every source."""
        return self.has_held_out and self._states.left_out > 0

    def is_held_out(self, rows: slice) -> bool:
        """Report whether a batch belongs to the held-out sequences, or to the second group."""
        return bool(rows.start >= self._border)

    @property
    def ranks(self) -> Ranks:
        """Return the ranks that divide the sequences among them."""
        return self._context.ranks

    @property
    def owner(self) -> int:
        """Return the rank that selects and refits in this layer."""
        return self.ranks.owner(self._context.layer)

    @property
    def _border(self) -> int:
        """Return the number of this rank's sequences that are not held out; they come first."""
        return self.ranks.share_size(self._samples - self._held_out_sequences)

    @property
    def _samples(self) -> int:
        """Return the number of sequences of all ranks."""
        states = self._states
        return states.compressed.shape[0] if states.samples is None else states.samples

    @property
    def _held_out_sequences(self) -> int:
        """Return the number of last sequences of all ranks with moments of their own.

        They are the second group of sources or, without groups, the held-out sequences; none if
        the method has a single damping.
        """
        samples = self._samples
        if len(self._context.method.damping_own) < 2 or samples < 2:
            return 0
        return self._states.left_out or max(samples // HELD_OUT_FRACTION, 1)

    # -- compressed hidden states ----------------------------------------------------------

    def compressed(self, rows: slice) -> Tensor:
        """Return a batch of the compressed hidden states on the compute device."""
        return self._compressed.read(rows, self._following)

    def store_compressed(self, rows: slice, hidden: Tensor) -> None:
        """Replace a batch of the compressed hidden states; it must not be changed afterwards."""
        self._compressed.write(rows, hidden)

    def store_into(self, target: Tensor, rows: slice, hidden: Tensor) -> None:
        """Replace a batch of another view of the storage of the compressed hidden states.

        Args:
            target: (samples, sequence, width), on the device of the hidden states.
            rows: of the batch.
            hidden: (batch, sequence, width); must not be changed afterwards.
        """
        self._compressed.write_to(target, rows, hidden)

    def after_attention(self, hidden: Tensor, weights: LayerWeights) -> Tensor:
        """Return the hidden states after the attention, from the layer's input."""
        settings, rotary = self._context.settings, self._context.rotary
        carried = decoder_layer.carried(hidden, weights.attention_shortcut)
        return carried + decoder_layer.attention(hidden, weights, settings, rotary)

    def keep_inner(self, rows: slice, inner: Tensor) -> None:
        """Keep a batch of the sliced attention's inner activations, while there is room."""
        if self._kept_inner_bytes + inner.nbytes <= KEPT_INNER_BYTES:
            self._kept_inner[rows.start] = inner
            self._kept_inner_bytes += inner.nbytes

    def after_sliced_attention(self, rows: slice, hidden: Tensor, weights: LayerWeights) -> Tensor:
        """Return a batch after the sliced attention, by its kept inner activations if there are.

        The result is bit for bit that of `after_attention`.
        """
        inner = self._kept_inner.pop(rows.start, None)
        if inner is None or not weights.has_attention:
            return self.after_attention(hidden, weights)
        self._kept_inner_bytes -= inner.nbytes
        output, norm = weights.attention_output, weights.attention_output_norm
        return hidden + decoder_layer.added(inner, output, norm, self._context.settings)

    def after_mlp(self, hidden: Tensor, weights: LayerWeights) -> Tensor:
        """Return the hidden states after the layer.

        Args:
            hidden: after the attention; the layer's input if attention and MLP are parallel.
            weights: of the layer.
        """
        settings = self._context.settings
        if settings.parallel_block:
            return decoder_layer.forward(hidden, weights, settings, self._context.rotary)
        carried = decoder_layer.carried(hidden, weights.mlp_shortcut)
        return carried + decoder_layer.mlp(hidden, weights, settings)

    def advance_mlp(self, weights: LayerWeights) -> None:
        """Move the compressed hidden states past the sliced MLP."""
        for rows in self.batches():
            self.store_compressed(rows, self.after_mlp(self.compressed(rows), weights))

    # -- dense hidden states ---------------------------------------------------------------
    #
    # They are stored after each module of a layer. In a parallel layer, whose modules read the
    # same input, they are stored after the MLP only.

    def _is_stored_after(self, module: Module) -> bool:
        """Return whether dense hidden states are stored after this module."""
        return module == "mlp" or not self._context.settings.parallel_block

    def restore_dense(self, module: Module) -> bool:
        """Load the dense hidden states after a module from the cache, if another run left them."""
        cache, dense = self._context.dense_states, self._states.dense
        if cache is None or dense is None or not self._is_stored_after(module):
            return False
        return cache.restore(self._context.layer, module, dense)

    def keep_dense(self, module: Module, restored: bool) -> None:
        """Save the dense hidden states after a module for other runs, unless they came from one."""
        cache, dense = self._context.dense_states, self._states.dense
        if cache is None or dense is None or restored or not self._is_stored_after(module):
            return
        cache.keep(self._context.layer, module, dense)

    def advance_dense(
        self, rows: slice, restored: bool, advance: Advance, module: Module = "mlp"
    ) -> Tensor | None:
        """Move a batch of the dense hidden states past a module of the dense layer.

        Returns:
            Those after the module, on the compute device; None for methods that do not use them.
        """
        if self._dense_states is None:
            return None
        hidden = self._dense_states.read(rows, self._following)
        if not restored:
            hidden = advance(hidden, self._dense)
            if self._is_stored_after(module):
                self._dense_states.write(rows, hidden)
        return hidden

    # -- replay ----------------------------------------------------------------------------

    def replay(self, weights: LayerWeights) -> None:
        """Move both hidden states past a layer that an interrupted run has compressed.

        Args:
            weights: the sliced layer as that run saved it.
        """
        if not self._context.method.uses_hidden_states:
            return
        if not self._context.settings.parallel_block:
            self._replay_module("attention", weights, self.after_attention)
        self._replay_module("mlp", weights, self.after_mlp)

    def _replay_module(self, module: Module, weights: LayerWeights, advance: Advance) -> None:
        """Repeat the products over the same batches as the compression of the layer."""
        restored = self.restore_dense(module)
        for rows in self.batches():
            self.store_compressed(rows, advance(self.compressed(rows), weights))
            self.advance_dense(rows, restored, advance)
        self.keep_dense(module, restored)
