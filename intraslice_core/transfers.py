"""Batches of a tensor on the compute device, copied while other batches are computed.

A tensor on the compute device, and every tensor where that is the CPU, is read and written in
place. Batches of a tensor in host memory are copied on a CUDA stream of their own, in the order in
which the copies were started: the next batch is uploaded and the last one downloaded while the
current one is computed. The device then holds up to three batches more than without overlap: the
next one, and two whose downloads have not ended.

The host waits once, at the end of a pass over all batches. Copies overlap where host memory is
page-locked; from and to other memory the driver copies at once, with the same result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

_PENDING_DOWNLOADS = 2
"""Downloads whose sources are held without a wait of the computing stream."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Copy to the device that was started."""

    tensor: Tensor
    copied: torch.cuda.Event

    def result(self) -> Tensor:
        """Return the copy; the computing stream waits for it, the host does not."""
        self.copied.wait(_computing_stream(self.tensor.device))
        return self.tensor


class Transfers:
    """Copies between host memory and a CUDA device, in order, on a stream of their own.

    Memory on the device belongs to the computing stream. It is safe to reuse because a copy to it
    begins after all work that was queued before, and the source of a copy from it is held until
    the computing stream waits for that copy.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._downloads: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def upload(self, source: Tensor) -> Upload:
        """Begin to copy a tensor of the host, which must not change before the copy has ended."""
        target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        return Upload(tensor=target, copied=self._copy(target, source))

    def download(self, target: Tensor, values: Tensor) -> None:
        """Begin to copy a tensor of the device to the host.

        Args:
            target: on the host; must not be read before `wait`, except by later uploads.
            values: on the device, in the dtype of `target`; must not be changed in place
                afterwards.
        """
        self._downloads.append((self._copy(target, values), values))
        while len(self._downloads) > _PENDING_DOWNLOADS:
            copied, _ = self._downloads.popleft()
            copied.wait(_computing_stream(self._device))

    def wait(self) -> None:
        """Wait on the host until all copies have ended."""
        self._stream.synchronize()
        self._downloads.clear()

    def _copy(self, target: Tensor, source: Tensor) -> torch.cuda.Event:
        """Queue a copy behind all work that the computing stream has queued; return its end."""
        self._stream.wait_stream(_computing_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(self._stream)
        return copied


def _computing_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.current_stream(device)


class StagedTensor:
    """Tensor whose rows are read and written in batches on the compute device.

    Args:
        tensor: (rows, …), on the device or in host memory.
        device: the compute device.
        transfers: copies of this pass; None copies at once, or nothing where the tensor is on the
            device.
    """

    def __init__(self, tensor: Tensor, device: torch.device, transfers: Transfers | None) -> None:
        self._tensor = tensor
        self._device = device
        self._transfers = transfers
        self._current: tuple[slice, Tensor] | None = None
        """Batch that was read or written last."""
        self._next: tuple[slice, Upload] | None = None

    def read(self, rows: slice, following: slice | None = None) -> Tensor:
        """Return a batch on the compute device, which must not be changed in place.

        Args:
            rows: of the batch.
            following: rows of the batch that is read after this one, whose copy begins here; None
                after the last.
        """
        if self._transfers is None:
            return self._tensor[rows].to(self._device)
        if self._current is None or self._current[0] != rows:
            self._current = (rows, self._uploaded(rows, self._transfers))
        if following is not None and (self._next is None or self._next[0] != following):
            self._next = (following, self._transfers.upload(self._tensor[following]))
        return self._current[1]

    def write(self, rows: slice, values: Tensor) -> None:
        """Replace a batch.

        Args:
            rows: of the batch.
            values: on the compute device; must not be changed in place afterwards.
        """
        if self._transfers is None:
            self._tensor[rows] = values.to(self._tensor.device)
            return
        values = values.to(self._tensor.dtype)
        self._transfers.download(self._tensor[rows], values)
        self._current = (rows, values)

    def write_to(self, target: Tensor, rows: slice, values: Tensor) -> None:
        """Write a batch to another tensor.

        Args:
            target: (rows, …), in the same place as this tensor.
            rows: of the batch.
            values: on the compute device; must not be changed in place afterwards.
        """
        StagedTensor(target, self._device, self._transfers).write(rows, values)

    def _uploaded(self, rows: slice, transfers: Transfers) -> Tensor:
        """Return a batch whose copy was started before, or is started now."""
        if self._next is None or self._next[0] != rows:
            return transfers.upload(self._tensor[rows]).result()
        (_, upload), self._next = self._next, None
        return upload.result()


def transfers_for(tensors: Sequence[Tensor], device: torch.device) -> Transfers | None:
    """Return the copies of a pass over tensors; None if none of them has to be copied to a GPU."""
    if device.type != "cuda" or all(tensor.device.type == device.type for tensor in tensors):
        return None
    return Transfers(device)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of a tensor on the compute device."""

    rows: slice
    values: Tensor
    """(rows, …); must not be changed in place."""
    staged: StagedTensor
    """The tensor."""

    def replace(self, values: Tensor) -> None:
        """Write the batch back with other values, which must not be changed in place afterwards."""
        self.staged.write(self.rows, values)

    def write_to(self, target: Tensor, values: Tensor) -> None:
        """Write values to the same rows of another tensor in the same place."""
        self.staged.write_to(target, self.rows, values)


def row_batches(rows: int, size: int) -> list[slice]:
    """Return the rows of consecutive batches of at most `size`."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def device_batches(tensor: Tensor, size: int, device: torch.device) -> Iterator[Batch]:
    """Yield a tensor's batches on the compute device, in order.

    Where the tensor is in host memory, it is complete there once the iteration has ended.

    Args:
        tensor: (rows, …).
        size: rows of a batch, at most.
        device: the compute device.
    """
    for (batch,) in zipped_batches((tensor,), row_batches(len(tensor), size), device):
        yield batch


def zipped_batches(
    tensors: Sequence[Tensor], batches: Sequence[slice], device: torch.device
) -> Iterator[tuple[Batch, ...]]:
    """Yield the same rows of several tensors on the compute device, as `device_batches` does.

    Args:
        tensors: (rows, …) each, all on one device.
        batches: rows of every batch.
        device: the compute device.
    """
    transfers = transfers_for(tensors, device)
    staged = [StagedTensor(tensor, device, transfers) for tensor in tensors]
    try:
        for rows, following in zip_longest(batches, batches[1:]):
            yield tuple(
                Batch(rows=rows, values=part.read(rows, following), staged=part) for part in staged
            )
    finally:
        if transfers is not None:
            transfers.wait()
