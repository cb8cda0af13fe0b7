"""Record of what a program did with the pretended device, and beside it on the host."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from types import FrameType
from typing import Literal

Direction = Literal["host to device", "device to host", "device to device"]

_HERE = os.path.dirname(os.path.abspath(__file__))
_FOREIGN = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep, "<frozen")


@dataclass
class DeviceLog:
    """Copies, waits, host work and memory of a device; places are `file:line function`."""

    copies: Counter[tuple[Direction, str]] = field(default_factory=Counter)
    copied_bytes: Counter[tuple[Direction, str]] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls that stop the host until the device is done, by operation and place."""
    operations: Counter[str] = field(default_factory=Counter)
    """Operations on the device, by place: each is a kernel launch or several."""
    device_flops: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of matrix products and factorisations on the device, by operation and dtype."""
    host_flops: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The same on the CPU, by operation and place."""
    mixed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Refused operations on several devices, by operation and place."""

    def summary(self, most: int = 12) -> str:
        """The largest entries of everything, as text."""
        lines: list[str] = []
        for (way, place), count in self.copies.most_common(most):
            size = self.copied_bytes[way, place]
            lines.append(f"copy   {count:>7} x {size / 1e6:>10.3f} MB  {way:<17} {place}")
        for (name, place), count in self.waits.most_common(most):
            lines.append(f"wait   {count:>7} x {name:<31} {place}")
        for place, count in self.operations.most_common(most):
            lines.append(f"launch {count:>7} {'':<33} {place}")
        for (name, dtype), flops in self.device_flops.most_common(most):
            lines.append(f"device {flops / 1e6:>14.2f} MFLOP {name:<24} {dtype}")
        for (name, place), flops in self.host_flops.most_common(most):
            lines.append(f"host   {flops / 1e6:>14.2f} MFLOP {name:<24} {place}")
        for (name, place), count in self.mixed.most_common(most):
            lines.append(f"mixed  {count:>7} x {name:<31} {place}")
        return "\n".join(lines)


@cache
def _kind(name: str) -> tuple[bool, bool, str]:
    """Of a source file: whether it is a library's, whether torch's, and its name in the log."""
    directory, file = os.path.split(name)
    ours = directory == _HERE and not file.startswith("test_")
    torch_or_us = f"{os.sep}torch{os.sep}" in name or ours
    foreign = torch_or_us or any(part in name for part in _FOREIGN) or name.endswith("mock.py")
    return foreign, torch_or_us, os.path.relpath(name)


def place() -> str:
    """The innermost line of the program that is neither ours nor a library's."""
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        foreign, torch_or_us, name = _kind(frame.f_code.co_filename)
        if not foreign:
            return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
        if not library and not torch_or_us:
            library = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return library or "(autograd)"
