"""How many calibration sequences each part of the estimator takes, without torch.

The numbers are those of `planning.estimators` and `estimation.walk`; a test holds both together.
"""

from __future__ import annotations

from dataclasses import dataclass

from intraslice_core.config import CompressionConfig
from intraslice_core.presets import PRESETS, resolve_allocator

GROUP_SEQUENCES = 8
REHEARSED = 8
REHEARSED_PLANS = 4
"""At most: those of the allocator, and equal layers."""
SPOT_DISTANCE = 5
TRIALS_A_SPOT = 4
PAIR_SEQUENCES, PAIR_QUERIES = 8, 128


@dataclass(frozen=True, kw_only=True)
class EstimatorSequences:
    """Sequences that pass the dense model before anything is compressed; 0 leaves a part out."""

    gradients: int
    learning: int
    check: int
    rehearsal: int
    """Of each of the plans that are compared."""

    @classmethod
    def of(cls, compression: CompressionConfig) -> EstimatorSequences:
        """As the method and the allocation have it."""
        samples = compression.calibration.samples
        checks = min(8, max(samples // 16, 1))
        rest = max(samples - checks, 1)
        gradients, learning = (
            min(max(8, samples // 8), rest),
            min(max(32, samples // 4), rest),
        )
        learns = PRESETS[compression.method].learns and compression.ratio != 0.0
        allocator = resolve_allocator(compression)
        walks = learns or allocator == "lagrangian"
        return cls(
            gradients=gradients if walks or allocator != "uniform" else 0,
            learning=learning if walks else 0,
            check=checks if walks else 0,
            rehearsal=min(REHEARSED, learning) if learns and allocator == "lagrangian" else 0,
        )


def spots(layers: int) -> tuple[int, ...]:
    """Layers whose modules are cut for trial."""
    return tuple(sorted({*range(0, layers, SPOT_DISTANCE), layers - 1}))


def stream_layers(layers: int) -> int:
    """Layers that the dense check stream and all trials pass, added up."""
    return layers + sum(TRIALS_A_SPOT * (layers - spot) for spot in spots(layers))
