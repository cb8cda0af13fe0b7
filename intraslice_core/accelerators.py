"""Supported devices, and arithmetic of GPU classes by compute capability (docs/method.md, 2).

Rates of float64 relative to float32 are from the table of arithmetic throughput in NVIDIA's CUDA
Programming Guide ("Compute Capabilities": results per clock cycle and multiprocessor), which also
decides which class computes bfloat16. Peak rates are of the class's most common data-centre model,
from its data sheet; other models of a class differ by up to three times. Only proportions are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

FactorisationPath = Literal["float64", "mixed"]
"""Precision of factorisations: all in float64, or in float32 with refinement and a check."""

DEVICE_HINT = "use auto, cpu, cuda or cuda:N"

_UNSUPPORTED = {
    "mps": "Apple GPUs have no float64, in which the engine adds up and checks its statistics",
    "xpu": "the engine was never run on Intel GPUs, many of which only emulate float64",
    "meta": "its tensors have no values",
    "hip": "torch names AMD GPUs cuda",
}
"""Reasons by type of device."""
_NEVER_TESTED = frozenset(
    {"fpga", "hpu", "ipu", "lazy", "maia", "mtia", "npu", "privateuseone", "ve", "vulkan", "xla"}
)
"""Other types that torch knows."""


def unsupported_device(name: str) -> str | None:
    """Return why the engine does not compute on a device, such as `mps` or `xpu:1`, or None."""
    kind = name.partition(":")[0]
    if kind in _UNSUPPORTED:
        return f"device {name!r} is not supported: {_UNSUPPORTED[kind]}"
    if kind in _NEVER_TESTED:
        return f"device {name!r} is not supported: the engine was never run on one"
    return None


_SLOW_FLOAT64 = 1 / 8
"""Share of the float32 rate below which float64 is slow: no class is between 1/32 and 1/2."""


@dataclass(frozen=True, kw_only=True)
class GpuClass:
    """Arithmetic of GPUs of one compute capability."""

    example: str
    """Model whose data sheet the rates are from."""
    float32: float
    """Floating-point operations per second in float32, outside tensor cores."""
    float64_share: float
    """Rate of float64 relative to float32, outside tensor cores."""
    half_share: float
    """Rate of bfloat16 (float16 where there is none) with float32 sums, relative to float32."""
    memory: float
    """Bytes per second of the GPU's memory."""
    has_bfloat16: bool = True

    @property
    def path(self) -> FactorisationPath:
        """Precision of factorisations of wide matrices."""
        return "mixed" if self.float64_share < _SLOW_FLOAT64 else "float64"


_FULL, _32ND, _64TH = 1 / 2, 1 / 32, 1 / 64


def _class(
    example: str, float32: float, float64_share: float, half_share: float, memory: float
) -> GpuClass:
    """Return a class of GPUs that compute bfloat16."""
    return GpuClass(
        example=example,
        float32=float32,
        float64_share=float64_share,
        half_share=half_share,
        memory=memory,
    )


GPU_CLASSES: Mapping[tuple[int, int], GpuClass] = {
    (6, 0): replace(_class("P100", 10.6e12, _FULL, 1, 0.73e12), has_bfloat16=False),
    (6, 1): replace(_class("P40", 11.8e12, _32ND, 1, 0.35e12), has_bfloat16=False),
    (7, 0): replace(_class("V100", 15.7e12, _FULL, 8, 0.9e12), has_bfloat16=False),
    (7, 5): replace(_class("T4", 8.1e12, _32ND, 8, 0.32e12), has_bfloat16=False),
    (8, 0): _class("A100", 19.5e12, _FULL, 16, 2.0e12),
    (8, 6): _class("A10", 31.2e12, _64TH, 4, 0.6e12),
    (8, 9): _class("L4", 30.3e12, _64TH, 4, 0.3e12),
    (9, 0): _class("H100", 67e12, _FULL, 15, 3.35e12),
    (10, 0): _class("B200", 75e12, _FULL, 30, 8.0e12),
    # Blackwell Ultra lacks most of the float64 units of the B200.
    (10, 3): _class("B300", 77e12, _64TH, 29, 8.0e12),
    (12, 0): _class("RTX PRO 6000", 125e12, _64TH, 4, 1.8e12),
}
"""Classes of NVIDIA GPUs by compute capability."""

UNKNOWN_GPU = _class("unknown", 30e12, _64TH, 4, 0.5e12)
"""Assumption about GPUs that are not in the table: float64 is slow, so that results are checked."""

_AMD_FULL_FLOAT64 = ("gfx908", "gfx90a", "gfx942", "gfx950")
"""Architectures of AMD Instinct MI100 to MI350, with float64 at half of float32's rate or more."""
_AMD_INSTINCT = _class("MI300X", 163e12, _FULL, 8, 5.3e12)


def gpu_class(capability: tuple[int, int], amd_architecture: str | None = None) -> GpuClass:
    """Return the class of a GPU; `UNKNOWN_GPU` where it is not in the table.

    Args:
        capability: compute capability, as torch reports it.
        amd_architecture: name of an AMD GPU's architecture, such as `gfx942:sramecc+`; None for
            NVIDIA. Their capabilities are numbered otherwise.
    """
    if amd_architecture is not None:
        if amd_architecture.split(":")[0] in _AMD_FULL_FLOAT64:
            return _AMD_INSTINCT
        return UNKNOWN_GPU
    if capability in GPU_CLASSES:
        return GPU_CLASSES[capability]
    return replace(UNKNOWN_GPU, has_bfloat16=capability >= (8, 0))


_OTHER_MODELS: Mapping[str, tuple[int, int]] = {
    "A30": (8, 0),
    "A40": (8, 6),
    "L40": (8, 9),
    "L40S": (8, 9),
    "H200": (9, 0),
    "GH200": (9, 0),
}
"""Capabilities of data-centre models that are no example of their class, by a word of the name."""


def gpu_class_named(name: str) -> GpuClass:
    """Return the class of a GPU by its name; `UNKNOWN_GPU` where no word of it is in a table.

    Args:
        name: of the GPU, as its driver reports it: `NVIDIA H100 80GB HBM3`.
    """
    words = set(name.replace("-", " ").split())
    for model in words & set(_OTHER_MODELS):
        return GPU_CLASSES[_OTHER_MODELS[model]]
    for candidate in (*GPU_CLASSES.values(), _AMD_INSTINCT):
        if words.issuperset(candidate.example.split()):
            return candidate
    return UNKNOWN_GPU
