"""Which device and which compute dtype `auto` stands for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from intraslice_core.errors import ConfigurationError

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_FAST_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_CPU_FACTS = Path("/proc/cpuinfo")


def resolve_device(name: str) -> torch.device:
    """The device a setting means; `auto` is CUDA where there is one.

    Raises:
        ConfigurationError: if torch does not know the name or the machine lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"torch knows no device {name!r}", field="device", hint="use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"this machine has {torch.cuda.device_count()} CUDA devices, {name!r} is not one",
            field="device",
            hint="use auto or cpu",
        )
    return device


def resolve_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The compute dtype a setting means on `device` for weights stored as `stored`.

    `auto` keeps the stored dtype on accelerators. On a CPU it is float32, unless the CPU computes
    in bfloat16: emulated, bfloat16 was measured five times slower than float32.

    Raises:
        ConfigurationError: if `name` is no compute dtype.
    """
    if name != "auto":
        try:
            return _DTYPES[name]
        except KeyError:
            raise ConfigurationError(
                f"unknown compute dtype {name!r}",
                field="dtype",
                hint=f"use auto, {', '.join(_DTYPES)}",
            ) from None
    if device.type != "cpu":
        return stored
    if stored == torch.bfloat16 and cpu_computes_bfloat16():
        return torch.bfloat16
    return torch.float32


def device_class(device: torch.device) -> str:
    """Which machines are about as fast as this one: the GPU's model, or the CPU's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} x {torch.get_num_threads()}"


def rounding_class(device: torch.device) -> str:
    """Which machines round alike: those that choose the same kernels."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device_class(device)}, host {capability} x {torch.get_num_threads()}"


@cache
def cpu_computes_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products; where that cannot be read, no."""
    try:
        facts = _CPU_FACTS.read_text()
    except OSError:
        return False
    lines = (line for line in facts.splitlines() if line.lower().startswith(("flags", "features")))
    words = set(next(lines, "").split())
    return not words.isdisjoint(_FAST_BFLOAT16_FLAGS)
