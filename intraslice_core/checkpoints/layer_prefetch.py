"""Reads of the next layer from disk, in a thread, while the current layer is computed.

Weights are mapped files: without a read ahead, the first use of a layer waits for the disk. The
thread reads the bytes of one layer and drops them, after which they are in the system's page cache,
from which mapped tensors take them. It makes no tensors and does not touch a device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

import psutil  # type: ignore[import-untyped]

from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.errors import BrokenCheckpointError


class LayerPrefetch:
    """Reads ahead of a pass over the layers, forwards or backwards.

    Where the whole checkpoint fits half of the available memory, each layer is read once: the page
    cache keeps it for further passes.

    Args:
        stored: the checkpoint.
        names: returns the names of a layer's tensors.
        layers: number of layers.
    """

    def __init__(
        self, stored: StoredTensors, names: Callable[[int], Collection[str]], layers: int
    ) -> None:
        self._stored = stored
        self._names = names
        self._layers = layers
        self._is_cached = stored.bytes_total <= int(psutil.virtual_memory().available) // 2
        self._cached: set[int] = set()
        self._last: int | None = None
        self._reading: _Reading | None = None

    def finish(self, layer: int) -> None:
        """Wait until the read of a layer has ended, if it was begun; give up one that is not used.

        Raises:
            BrokenCheckpointError: if the layer could not be read.
        """
        if self._reading is None or layer == self._last:
            return
        reading, self._reading = self._reading, None
        if reading.layer == layer:
            reading.result()
        else:
            reading.stop()

    def begin_after(self, layer: int) -> None:
        """Begin to read the layer that follows in the direction of the pass, if there is one."""
        if layer == self._last:
            return
        following = layer - 1 if self._last == layer + 1 else layer + 1
        self._last = layer
        if self._is_cached:
            self._cached.add(layer)
        if following in self._cached or not 0 <= following < self._layers:
            return
        names = self._names(following)
        self._reading = _Reading(following, lambda stopped: self._stored.read_ahead(names, stopped))


class _Reading:
    """Thread that reads one layer. It ends with the process, and soon after `stop`."""

    def __init__(self, layer: int, read: Callable[[threading.Event], None]) -> None:
        self.layer = layer
        self._read = read
        self._stopped = threading.Event()
        self._error: BrokenCheckpointError | None = None
        self._thread = threading.Thread(target=self._run, name=f"read layer {layer}", daemon=True)
        self._thread.start()

    def result(self) -> None:
        """Wait for the end.

        Raises:
            BrokenCheckpointError: if the layer could not be read.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the thread after its current read."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            self._read(self._stopped)
        except BrokenCheckpointError as error:
            self._error = error
