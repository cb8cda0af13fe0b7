"""Rates of machines for the durations of stages: the reference CPU, and GPUs by class.

Those of the reference are fitted to measured runs. Those of GPUs are peak rates of their class times
an assumed efficiency; none was measured. Only proportions between stages depend on them.
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


@dataclass(frozen=True, kw_only=True)
class MachineRates:
    """Floating-point operations per second by kind of work."""

    products: float
    """Products in the compute dtype."""
    moment_products: float
    """Products with second moments, in float64."""
    factorisations: float
    """Blocked factorisations and solves of wide matrices, in the precision of `path`."""
    eliminations: float
    """Elimination of neurons, a few rows at a time, in the precision of `path`."""
    memory: float
    """Bytes per second of weights that are read from memory for every decoded token."""
    path: FactorisationPath = "float64"

    def factorisation_seconds(self, operations: float, moment_products: float) -> float:
        """Return the seconds of fits: operations in total, and the part that are products."""
        factors = operations - moment_products
        return factors / self.factorisations + moment_products / self.moment_products

    def elimination_seconds(self, operations: float, moment_products: float) -> float:
        """Return the seconds of the sensitivity's factorisations, as `factorisation_seconds`."""
        if self.path == "float64":  # the reference's rate is fitted to their sum
            return operations / self.eliminations
        factors = operations - moment_products
        return factors / self.eliminations + moment_products / self.moment_products


REFERENCE_RATES = MachineRates(
    products=140e9, moment_products=28e9, factorisations=28e9, eliminations=13e9, memory=6e9
)
"""One thread of a CPU with AVX-512 and AMX."""


def machine_rates(gpu: GpuClass | None, item_bytes: int) -> MachineRates:
    """Return the rates of a class of GPUs, or of the reference CPU.

    Args:
        gpu: class of the GPU; None for a CPU.
        item_bytes: bytes of the compute dtype: 2 uses tensor cores, 4 does not.
    """
    if gpu is None:
        return REFERENCE_RATES
    float64 = gpu.float32 * gpu.float64_share
    factors = gpu.float32 if gpu.path == "mixed" else float64
    products = gpu.float32 * (gpu.half_share if item_bytes == 2 else 1)
    return MachineRates(
        products=_PRODUCT_EFFICIENCY * products,
        moment_products=_PRODUCT_EFFICIENCY * float64,
        factorisations=_FACTORISATION_EFFICIENCY * factors,
        eliminations=_ELIMINATION_EFFICIENCY * factors,
        memory=_MEMORY_EFFICIENCY * gpu.memory,
        path=gpu.path,
    )
