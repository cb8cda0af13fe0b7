"""Rates of machines for the durations of stages: the reference CPU, and GPUs by class.

Those of the reference are fitted to measured runs. Those of GPUs are peak rates of their class
times an assumed efficiency; none was measured. Only proportions between stages depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from intraslice_core.accelerators import FactorisationPath, GpuClass

_PRODUCT_EFFICIENCY = 0.5
"""Assumed share of a GPU's peak rate in large products."""
_FACTORISATION_EFFICIENCY = 0.25
"""Assumed share of a GPU's peak rate in blocked factorisations."""
_ELIMINATION_EFFICIENCY = 0.12
"""Assumed share of a GPU's peak rate in eliminations: half of that, as on the reference."""
_MEMORY_EFFICIENCY = 0.6
"""Assumed share of a GPU's memory bandwidth in decoding."""
_FLOAT64_SHARE = 0.01
"""Share of the operations of factorisations that stay in float64 on the mixed path: checks, and
products of the attention's moments. Counted for Llama 3 8B, without repetitions in float64."""


@dataclass(frozen=True, kw_only=True)
class MachineRates:
    """Rates of a machine by kind of work, per second."""

    products: float
    """Floating-point operations of products in the compute dtype."""
    factorisations: float
    """Floating-point operations of blocked factorisations and products with second moments."""
    eliminations: float
    """Floating-point operations of eliminating neurons, a few rows at a time."""
    memory: float
    """Bytes of weights that are read from memory for every decoded token."""
    path: FactorisationPath = "float64"
    """Precision of factorisations and eliminations."""


REFERENCE_RATES = MachineRates(products=140e9, factorisations=28e9, eliminations=13e9, memory=6e9)
"""One thread of a CPU with AVX-512 and AMX."""


def machine_rates(gpu: GpuClass | None, item_bytes: int) -> MachineRates:
    """Return the rates of a class of GPUs, or of the reference CPU.

    Args:
        gpu: class of the GPU; None for a CPU.
        item_bytes: bytes of the compute dtype: 2 uses tensor cores, 4 does not.
    """
    if gpu is None:
        return REFERENCE_RATES
    factors = gpu.float32 * gpu.float64_share
    if gpu.path == "mixed":
        factors = gpu.float32 / (1 - _FLOAT64_SHARE + _FLOAT64_SHARE / gpu.float64_share)
    products = gpu.float32 * (gpu.half_share if item_bytes == 2 else 1)
    return MachineRates(
        products=_PRODUCT_EFFICIENCY * products,
        factorisations=_FACTORISATION_EFFICIENCY * factors,
        eliminations=_ELIMINATION_EFFICIENCY * factors,
        memory=_MEMORY_EFFICIENCY * gpu.memory,
        path=gpu.path,
    )
