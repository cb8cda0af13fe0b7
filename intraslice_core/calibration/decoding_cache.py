"""Key/value cache of a batch of sequences that a model writes, allocated once for their length.

transformers' dynamic layers copy all cached keys and values at every token. These layers write into
a storage of their own and return views of it. All rows are at the same position, so that there is
no padding, and positions and masks follow from the number of cached tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class _Storage:
    """Keys or values of a layer, (rows, heads, positions, width), of which a part is filled."""

    def __init__(self, states: Tensor, positions: int) -> None:
        rows, heads, _, width = states.shape
        self.tensor = states.new_empty(rows, heads, positions, width)

    @property
    def positions(self) -> int:
        return self.tensor.shape[2]

    def write(self, states: Tensor, begin: int) -> None:
        """Write states (rows, heads, new, width) from position `begin` on."""
        self.tensor[:, :, begin : begin + states.shape[2]] = states

    def move_to_front(self, begin: int, end: int, positions: int) -> None:
        """Move the states of positions `begin` to `end` to the first of at least `positions`."""
        moved = self.tensor[:, :, begin:end]
        if positions > self.positions:
            rows, heads, _, width = self.tensor.shape
            self.tensor = self.tensor.new_empty(rows, heads, positions, width)
        else:
            moved = moved.clone()  # the places may overlap
        self.tensor[:, :, : end - begin] = moved

    def read(self, begin: int, end: int) -> Tensor:
        """Return the states of positions `begin` to `end`, a view."""
        return self.tensor[:, :, begin:end]


class PreallocatedLayer(DynamicLayer):
    """Keys and values of a layer that attends to all positions.

    Args:
        length: largest number of tokens of a sequence.
    """

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._length = length
        self.storage: tuple[_Storage, _Storage] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states (rows, heads, new, width) and return all cached keys and values."""
        del args, kwargs
        if self.storage is None:
            self.lazy_initialization(key_states, value_states)
            self.storage = (
                _Storage(key_states, self._length),
                _Storage(value_states, self._length),
            )
            begin = 0
        else:
            begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        keys, values = self.storage
        keys.write(key_states, begin)
        values.write(value_states, begin)
        self.keys, self.values = keys.read(0, end), values.read(0, end)
        return self.keys, self.values


class PreallocatedWindowLayer(DynamicSlidingWindowLayer):
    """Keys and values of a layer with a sliding window, in a storage of at most two windows.

    Where the storage is full, the last window is moved to its front: one copy per window. Dictated
    tokens that do not fit beside it enlarge the storage.

    Args:
        length: largest number of tokens of a sequence.
        window: positions that a token attends to, its own included.
    """

    def __init__(self, length: int, window: int) -> None:
        super().__init__(window)  # type: ignore[no-untyped-call]
        self._length = length
        self._end = 0  # filled positions of the storage
        self.storage: tuple[_Storage, _Storage] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states (rows, heads, new, width), return those in the window of the first one."""
        del args, kwargs
        new = key_states.shape[-2]
        if self.storage is None:
            self.lazy_initialization(key_states, value_states)
            positions = max(min(self._length, 2 * self.sliding_window), new)
            self.storage = _Storage(key_states, positions), _Storage(value_states, positions)
        keys, values = self.storage
        visible = min(self._end, self.sliding_window - 1)
        if self._end + new > keys.positions:
            for states in self.storage:
                states.move_to_front(self._end - visible, self._end, visible + new)
            self._end = visible
        begin = self._end - visible
        keys.write(key_states, self._end)
        values.write(value_states, self._end)
        self._end += new
        self.cumulative_length += new
        first = max(self._end - self.sliding_window + 1, 0)
        self.keys, self.values = keys.read(first, self._end), values.read(first, self._end)
        return keys.read(begin, self._end), values.read(begin, self._end)


def preallocated_cache(model: PreTrainedModel, length: int) -> DynamicCache:
    """Return the model's cache for sequences of at most `length` tokens.

    Layers of other kinds than full and sliding attention stay transformers' own.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [_preallocated(layer, length) for layer in cache.layers]
    return cache


def _preallocated(layer: Any, length: int) -> Any:
    if type(layer) is DynamicLayer:
        return PreallocatedLayer(length)
    if type(layer) is DynamicSlidingWindowLayer:
        return PreallocatedWindowLayer(length, layer.sliding_window)
    return layer


def keep_rows(cache: DynamicCache, rows: int) -> None:
    """Keep the first rows of all layers, without copying where they are preallocated."""
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        storage = getattr(layer, "storage", None)
        if storage is None:
            layer.batch_select_indices(torch.arange(rows))
            continue
        for states in storage:
            states.tensor = states.tensor[:rows]
        layer.keys, layer.values = layer.keys[:rows], layer.values[:rows]


def cached_bytes(cache: DynamicCache) -> int:
    """Return the bytes of all keys and values, allocated for the whole length where possible.

    A layer whose attention was removed has none.
    """
    layers: list[Any] = list(cache.layers)
    size = 0
    for layer in layers:
        storage = getattr(layer, "storage", None)
        if storage is not None:
            size += sum(states.tensor.nbytes for states in storage)
        elif getattr(layer, "keys", None) is not None:
            size += layer.keys.nbytes + layer.values.nbytes
    return int(size)
