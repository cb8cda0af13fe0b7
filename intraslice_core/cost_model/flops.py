"""Floating-point operations of a compression, stage by stage, from shapes alone.

A model of the work, not a count of it: products of matrices and factorisations, two operations a
multiply-add; norms, activations and what is only moved are left out. Tests hold it against what
torch counts. Factorisations and what is solved with them are in float64, all else in the compute
dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from intraslice_core.config import CompressionConfig, FrozenModel
from intraslice_core.cost_model.work import (
    PAIR_QUERIES,
    PAIR_SEQUENCES,
    TRIAL_PLANS,
    TRIALS_A_SPOT,
    EstimatorSequences,
    spots,
    stream_layers,
)
from intraslice_core.methods import METHODS
from intraslice_core.plan import ModelGeometry

_TRIANGLE = 7 / 12
"""Of a Gram matrix that is multiplied out: `statistics` takes it in six panels."""
_HELD_OUT = 1 / 8


class StageFlops(FrozenModel):
    """Operations of each stage."""

    forward: float
    """The dense model over all calibration tokens, head included: what costs are compared with."""
    gradients: float
    learning: float
    learning_wide: float
    """Factorisations of the walk, in float64."""
    trial_compression: float
    rehearsal_wide: float
    passes: float
    """Both streams through the layers that are compressed."""
    statistics: float
    factorisations: float
    """Every damping that is tried and the solutions with it, in float64."""

    @property
    def allocate(self) -> float:
        """What precedes the compression."""
        learnt = self.gradients + self.learning + self.learning_wide
        return learnt + self.trial_compression + self.rehearsal_wide

    @property
    def compress(self) -> float:
        """The compression itself."""
        return self.passes + self.statistics + self.factorisations


def stage_flops(geometry: ModelGeometry, compression: CompressionConfig) -> StageFlops:
    """All stages of one compression at its ratio, which all modules are taken to lose alike."""
    work = _Work(geometry, compression)
    compensates = METHODS[compression.method].compensate
    return StageFlops(
        forward=work.samples * work.sequence(1.0),
        gradients=work.gradients(),
        learning=work.learning(),
        learning_wide=work.learning_wide(),
        trial_compression=work.trial_compression(),
        rehearsal_wide=TRIAL_PLANS * work.fits(1, 1) if work.parts.trial_compression else 0.0,
        passes=work.passes(work.samples) if compensates else 0.0,
        statistics=work.statistics(work.samples) if compensates else 0.0,
        factorisations=work.fits(*work.dampings) if compensates else 0.0,
    )


@dataclass(frozen=True)
class _Work:
    geometry: ModelGeometry
    compression: CompressionConfig

    @property
    def samples(self) -> int:
        return self.compression.calibration.samples

    @property
    def length(self) -> int:
        return self.compression.calibration.sequence_length

    @property
    def layers(self) -> int:
        return self.geometry.num_hidden_layers

    @property
    def inner(self) -> int:
        """Width of the attention's inner activation."""
        return self.geometry.num_attention_heads * self.geometry.head_dim

    @property
    def kept(self) -> float:
        ratio = self.compression.ratio
        return 1.0 - (0.3 if ratio is None else ratio)

    @property
    def parts(self) -> EstimatorSequences:
        return EstimatorSequences.of(self.compression)

    @property
    def dampings(self) -> tuple[int, int]:
        method = METHODS[self.compression.method]
        return len(method.damping_own), len(method.damping_correction)

    # -- passes of one sequence ------------------------------------------------------------

    def attention(self) -> float:
        """A sequence through one attention; a query sees half of the keys on average."""
        weights = self.geometry.dense_layer().attention_parameters(self.geometry)
        return self.length * (2.0 * weights + 2.0 * self.length * self.inner)

    def mlp(self) -> float:
        """A sequence through one MLP."""
        weights = self.geometry.dense_layer().mlp_parameters(self.geometry)
        return 2.0 * self.length * weights

    def head(self) -> float:
        """A sequence through the output head."""
        return 2.0 * self.length * self.geometry.hidden_size * self.geometry.vocab_size

    def sequence(self, kept: float) -> float:
        """A sequence through the whole model."""
        return self.layers * kept * (self.attention() + self.mlp()) + self.head()

    # -- the estimator ---------------------------------------------------------------------

    def gradients(self) -> float:
        """Forward; then each layer again and the gradient of its inputs, weights having none."""
        hidden, heads = self.geometry.hidden_size, self.geometry.num_attention_heads
        moments = 2 * 2.0 * hidden**2 * _TRIANGLE
        masks = 2 * 2.0 * heads * self.geometry.head_dim**2
        layer = 3 * (self.attention() + self.mlp()) + self.length * (moments + masks)
        return self.parts.gradients * (self.layers * layer + 2 * self.head())

    def learning(self) -> float:
        """The walk's sums, its trials, and what rotary pairs do."""
        parts, geometry = self.parts, self.geometry
        if not parts.learning:
            return 0.0
        layer = self.attention() + self.mlp()
        sums = 2.0 * _TRIANGLE * self.length * (self.inner**2 + geometry.intermediate_size**2)
        trials = len(spots(self.layers)) * TRIALS_A_SPOT + 1
        checks = stream_layers(self.layers) * layer + trials * self.head()
        return (
            parts.learning * self.layers * (layer + sums)
            + parts.check * checks
            + self.layers * self._pair_effects()
        )

    def _pair_effects(self) -> float:
        """Of one layer: products of keys and values weighed by each query, then their features."""
        queries = min(PAIR_QUERIES, self.length) * min(PAIR_SEQUENCES, self.parts.learning)
        heads, width = self.geometry.num_attention_heads, self.geometry.head_dim
        weighed = 2.0 * self.length * width * (width + 3)
        return queries * heads * (weighed + 2.0 * width**3 + 2.0 * width**3)

    def learning_wide(self) -> float:
        """Of every layer: neurons are eliminated one after the other; some layers are tried."""
        if not self.parts.learning:
            return 0.0
        hidden, width = self.geometry.hidden_size, self.geometry.intermediate_size
        elimination = width**3 + 2 * width**3 / 3 + width**2 * hidden
        metrics = 4 * hidden**3 / 3 + 2.0 * hidden**2 * (width + 2 * self.inner)
        tried = sum(
            2.0 * (width + self.inner) ** 2 * hidden * kept + self._solved(width * kept, 1)
            for kept in (0.75, 0.5)
        )
        return self.layers * (elimination + metrics) + len(spots(self.layers)) * tried

    def trial_compression(self) -> float:
        """All plans, compressed on few sequences and scored on others."""
        fitted, checked = self.parts.trial_compression, self.parts.check
        if not fitted:
            return 0.0
        return TRIAL_PLANS * (
            self.passes(fitted) + self.statistics(fitted) + checked * self.sequence(self.kept)
        )

    # -- the compression -------------------------------------------------------------------

    def passes(self, sequences: int) -> float:
        """Dense and pruned on the compressed stream, dense on its own, sliced onwards."""
        kept, dense = self.kept, METHODS[self.compression.method].dense_target
        attention = (1 + 2 * kept + dense) * self.attention()
        return sequences * self.layers * (attention + (1 + kept + dense) * self.mlp())

    def statistics(self, sequences: int) -> float:
        """Gram and cross moments of both modules."""
        hidden, width = self.geometry.hidden_size, self.geometry.intermediate_size
        corrects = METHODS[self.compression.method].dense_target
        grams = _TRIANGLE * (self.inner**2 + width**2)
        crosses = self.inner * hidden + corrects * (self.inner + width) * hidden
        return 2.0 * sequences * self.length * self.layers * (grams + crosses)

    def fits(self, own: int, correction: int) -> float:
        """Solutions of both modules of all layers, as often as there are dampings to try."""
        hidden, width = self.geometry.hidden_size, self.geometry.intermediate_size
        held_out = own > 1
        tries = (own + correction if held_out else 0) + 1 + (correction > 0)
        projected = 2.0 * self.inner**2 * self.inner * self.kept * (1 + self.kept)
        crosses = 2.0 * width**2 * hidden
        moments = (1 + held_out) * (projected + crosses)
        solved = self._solved(self.inner * self.kept, tries) + self._solved(
            width * self.kept, tries
        )
        return self.layers * (moments + solved)

    def _solved(self, width: float, tries: int) -> float:
        """Factor, solution and its error for each damping; twice what the prior leaves."""
        product = 2.0 * width**2 * self.geometry.hidden_size
        return tries * (width**3 / 3 + 2 * product) + 2 * product
