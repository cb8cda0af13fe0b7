"""Memory of the compute device: its typed error, and smaller batches where it does not suffice.

torch raises `torch.OutOfMemoryError`, a `RuntimeError`, and its libraries raise plain ones. All are
recognised and translated in this module only. Work that passes sequences in batches is repeated
with half the batch before the error reaches the caller, on all ranks where one lacks memory.
"""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from intraslice_core.errors import OutOfDeviceMemoryError
from intraslice_core.ranks import ALONE, AttemptAbandonedError, Ranks

_Result = TypeVar("_Result")

SPARE_SHARE = 0.2
"""Share of the memory that has to stay free for a layer to need no precautions."""

_SIGNS = ("out of memory", "ALLOC_FAILED")
"""Parts of the messages of CUDA and its libraries, whose errors have no class, and of processes."""
_HOST_SIGN = "DefaultCPUAllocator"
"""Part of the message with which torch fails to allocate host memory, in every system's words."""
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = rf"([\d.]+) ({'|'.join(_UNITS)})"
_NEEDED = re.compile(rf"Tried to allocate {_SIZE}")
_TOTAL = re.compile(rf"total capacity of {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")

_LISTENER: ContextVar[Callable[[str], None] | None] = ContextVar("lowered_batches", default=None)


# -- the error ------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Report whether an error means that a device has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Report whether a message is that of a device with too little memory."""
    return any(sign in text for sign in _SIGNS)


def lacks_memory(error: BaseException) -> bool:
    """Report whether an error means that a device or the host has too little memory."""
    return is_out_of_memory(error) or _HOST_SIGN in str(error)


def out_of_device_memory(text: str, lower: str) -> OutOfDeviceMemoryError:
    """Return the error of a failed allocation.

    Args:
        text: torch's message, from which the sizes are taken.
        lower: setting that decides how much memory is needed.
    """
    needed, free, total = (_bytes(pattern, text) for pattern in (_NEEDED, _FREE, _TOTAL))
    message = "the device has too little memory"
    if needed is not None:
        message += f": {_described(needed)} more were needed"
    if free is not None and total is not None:
        message += f", {_described(free)} of {_described(total)} were free"
    return OutOfDeviceMemoryError(
        message,
        field=lower,
        hint=f"lower {lower}, or use a device with more memory",
        needed_bytes=needed,
        free_bytes=free,
        total_bytes=total,
    )


@contextmanager
def out_of_memory_reported(lower: str | Callable[[], str]) -> Iterator[None]:
    """Translate an error about the device's memory that is raised inside the context.

    Local variables of the functions that have failed are cleared, because the error's traceback
    would keep their tensors on the device.

    Args:
        lower: setting that decides how much memory is needed, or a function that returns it.

    Raises:
        OutOfDeviceMemoryError: if the device has too little memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        setting = lower if isinstance(lower, str) else lower()
        raise out_of_device_memory(str(error), setting) from error


def _bytes(pattern: re.Pattern[str], text: str) -> int | None:
    """Return the size that a message names; None if it names none."""
    match = pattern.search(text)
    return None if match is None else round(float(match[1]) * _UNITS[match[2]])


def _described(size: int) -> str:
    """Return a size for people, in the largest unit of which it has one."""
    unit = next((name for name in ("TiB", "GiB", "MiB") if size >= _UNITS[name]), "KiB")
    return f"{size / _UNITS[unit]:.2f} {unit}"


# -- smaller batches ------------------------------------------------------------------------------


@contextmanager
def lowered_batches_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Send warnings about lowered batches in a block to `listener`."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def _change_nothing() -> None:
    """Leave everything as it is: a failed attempt has changed nothing."""


@dataclass(kw_only=True)
class BatchSize:
    """Sequences per forward pass: those requested, or fewer where the device is too small.

    A lowered size stays lowered for everything that follows.
    """

    requested: int
    setting: str = "compression.batch_size"
    """Name of the size in warnings."""
    lower: str = "compression.calibration.sequence_length"
    """Setting to lower where a single sequence does not fit."""
    ranks: Ranks = ALONE
    """Ranks that make each attempt together, with the same size."""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = self.requested

    def repeat(
        self, attempt: Callable[[int], _Result], *, undo: Callable[[], None] = _change_nothing
    ) -> _Result:
        """Return the result of an attempt, which is repeated with half the size until it fits.

        Args:
            attempt: work with a batch size; it sums into accumulators of its own.
            undo: restores everything else that a failed attempt has changed, so that the next one
                gives the result of a run that began with the smaller size.

        Raises:
            OutOfDeviceMemoryError: if a batch of one sequence does not fit.
        """
        while True:
            try:
                with out_of_memory_reported(self.lower):
                    return self.ranks.attempted(partial(attempt, self.size))
            except OutOfDeviceMemoryError:
                if self.size == 1 or not self.ranks.abandon():
                    raise
            except AttemptAbandonedError as error:
                traceback.clear_frames(error.__traceback__)
            # After the handlers, so that no traceback keeps tensors.
            _release_memory()
            self._halve()
            undo()

    def _halve(self) -> None:
        before, self.size = self.size, self.size // 2
        listener = _LISTENER.get()
        if listener is not None:
            listener(
                f"{self.setting} was lowered from {before} to {self.size}: the device has too "
                "little memory"
            )


def free_device_memory(device: torch.device) -> int:
    """Return the bytes of a GPU that this process can still allocate."""
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached


def has_room_to_spare(device: torch.device) -> bool:
    """Report whether the largest use of a device so far leaves a fifth of its available memory.

    Fragmentation is part of that use. False where torch does not tell.
    """
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    available = free + torch.cuda.memory_reserved(device)
    return torch.cuda.max_memory_reserved(device) <= (1.0 - SPARE_SHARE) * available


def any_rank_lacks_room(ranks: Ranks, device: torch.device) -> bool:
    """Report, alike on all ranks, whether the device of one of them has no room to spare.

    They make the same attempts, so that none may decide by its own device.
    """
    return any(ranks.totals([not has_room_to_spare(device)]))


def _release_memory() -> None:
    """Free what failed work has left on the device: reference cycles, and cached blocks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
