"""Floating-point operations of a compression by stage, estimated from shapes alone.

The estimate contains matrix products and factorisations, with two operations per multiply-add. It
leaves out norms, activations and copies. Tests compare it with torch's own count. Of a compression
on several devices it is that of the one with most of the work (`ranks`). Factorisations,
solves and products with second moments are in float64, or in float32 on GPUs where that is slow
(`rates`); everything else is in the compute dtype.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from intraslice_core.allocation.residual_width import residual_plan
from intraslice_core.allocation.two_stage import ALPHA
from intraslice_core.config import CompressionConfig, FrozenModel
from intraslice_core.cost_model.work import (
    PAIR_BLOCKS,
    PAIR_QUERIES,
    PAIR_SEQUENCES,
    TRIAL_CUT_POSITIONS,
    TRIAL_PLANS,
    TRIALS_PER_LAYER,
    EstimatorSequences,
    attention_passes,
    check_layer_passes,
    layer_removal_passes,
    trial_layers,
)
from intraslice_core.methods import METHODS
from intraslice_core.plan import ModelGeometry

_TRIANGLE = 7 / 12
"""Computed fraction of a Gram matrix, which `statistics` multiplies out in six panels."""


_EIGENBASIS = 9
"""Operations of a symmetric eigendecomposition with vectors, per cube of its size, roughly."""

TRIED_DAMPINGS = 5
"""Dampings of a module that are usually tried before the one of least error is known."""
DAMPING_PROBES = 32
"""Random combinations of outputs by which the engine compares dampings."""


class StageFlops(FrozenModel):
    """Floating-point operations of each stage."""

    forward: float
    """Forward pass of the dense model, head included, over all calibration tokens; the reference
    for the other costs."""
    gradients: float
    sensitivity: float
    sensitivity_factorisations: float
    """Factorisations of the sensitivity measurement, with products of second moments."""
    trial_compression: float
    trial_factorisations: float
    """Factorisations of the trial compressions, with products of second moments."""
    masks: float
    """Training of masks."""
    units: float
    """Measurement of heads and neurons for methods that remove whole ones."""
    passes: float
    """Dense and compressed hidden states through the layers that are compressed."""
    statistics: float
    factorisations: float
    """Factorisations and solves for every damping tried, with products of second moments."""

    @property
    def allocate(self) -> float:
        """Operations of the sensitivity measurement and the allocation."""
        sensitivity = self.gradients + self.sensitivity + self.sensitivity_factorisations
        trials = self.trial_compression + self.trial_factorisations
        return sensitivity + trials + self.units + self.masks

    @property
    def compress(self) -> float:
        """Operations of the compression itself."""
        return self.passes + self.statistics + self.factorisations


def stage_flops(geometry: ModelGeometry, compression: CompressionConfig) -> StageFlops:
    """Estimate the operations of all stages, assuming that every module loses the same ratio."""
    work = Work(geometry, compression)
    compensates = METHODS[compression.method].compensate
    refits = work.of_remaining_layers()
    trials = TRIAL_PLANS if work.parts.trial_fit else 0
    flops = StageFlops(
        forward=work.samples * work.sequence(1.0),
        gradients=work.gradients(),
        sensitivity=work.sensitivity(),
        sensitivity_factorisations=work.sensitivity_factorisations(),
        trial_compression=work.trial_compression(),
        trial_factorisations=work.layers * work.own_refits(*[work.kept] * trials) * bool(trials),
        masks=work.masks(),
        units=work.units(),
        passes=refits.passes(work.samples) if compensates else work.direct_passes(),
        statistics=refits.statistics(work.samples) if compensates else work.stream_statistics(),
        factorisations=refits.fits(*work.dampings) if compensates else work.rotations(),
    )
    return flops.model_copy(
        update={name: share * getattr(flops, name) for name, share in work.shares().items()}
    )


@dataclass(frozen=True)
class Work:
    """Operation counts for one model and one compression."""

    geometry: ModelGeometry
    compression: CompressionConfig

    def of_remaining_layers(self) -> Work:
        """Return the work of a model of the layers that remain, all of them dense.

        It is this work itself for methods that keep all layers.
        """
        if METHODS[self.compression.method].layers is None:
            return self
        layers = max(round(self.kept * self.layers), 1)
        return Work(
            self.geometry.model_copy(update={"num_hidden_layers": layers}),
            self.compression.model_copy(update={"ratio": 0.0}),
        )

    @property
    def samples(self) -> int:
        """Number of calibration sequences."""
        return self.compression.calibration.samples

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.compression.calibration.sequence_length

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.geometry.num_hidden_layers

    @property
    def inner(self) -> int:
        """Width of the attention's inner activations."""
        return self.geometry.num_attention_heads * self.geometry.head_dim

    @property
    def kept(self) -> float:
        """Fraction of every module that remains."""
        ratio = self.compression.ratio
        return 1.0 - (0.3 if ratio is None else ratio)

    @property
    def parts(self) -> EstimatorSequences:
        """Sequences and tokens of the allocation."""
        return EstimatorSequences.of(self.compression)

    @property
    def check_sequences(self) -> int:
        """Sequences on which trial compressions are judged."""
        return min(8, max(self.samples // 8, 1))

    @property
    def dampings(self) -> tuple[int, int]:
        """Numbers of candidates for both dampings."""
        method = METHODS[self.compression.method]
        return len(method.damping_own), len(method.damping_correction)

    @property
    def folds(self) -> int:
        """Factorisations of every damping that is compared: of both groups of sources if equal."""
        calibration = self.compression.resolved_calibration
        groups = calibration.source_groups()
        if METHODS[self.compression.method].validation == "held_out" or groups is None:
            return 1
        counts = [0, 0]
        for group, part in zip(groups, calibration.parts(), strict=True):
            counts[group] += part.samples
        return 1 + (counts[0] == counts[1])

    # -- several devices -------------------------------------------------------------------

    def shares(self) -> dict[str, float]:
        """Return the parts of `StageFlops` that devices divide, each with the largest share of it.

        Refits of a module follow one another, and masks are trained by one device.
        """
        parts = self.parts
        sequences = min(parts.trial_fit, self.check_sequences)
        return {
            "gradients": self._share(parts.gradients),
            "sensitivity": self._share(parts.sensitivity),
            "sensitivity_factorisations": self._share(self.layers),
            "trial_compression": self._share(sequences),
            "trial_factorisations": self._share(TRIAL_PLANS),
            "units": self._share(self.samples),
            "passes": self._share(self.samples),
            "statistics": self._share(self.samples),
        }

    def _share(self, number: int) -> float:
        """Return the largest share of a number of sequences, layers or plans."""
        return math.ceil(number / self.compression.devices) / max(number, 1)

    # -- passes of one sequence ------------------------------------------------------------

    def attention(self) -> float:
        """Count one sequence through one attention; a query sees half of the keys on average."""
        weights = self.geometry.dense_layer().attention_parameters(self.geometry)
        return self.length * (2.0 * weights + 2.0 * self.length * self.inner)

    def mlp(self) -> float:
        """Count one sequence through one MLP."""
        weights = self.geometry.dense_layer().mlp_parameters(self.geometry)
        return 2.0 * self.length * weights

    def head(self) -> float:
        """Count one sequence through the output head."""
        return 2.0 * self.length * self.geometry.hidden_size * self.geometry.vocab_size

    def sequence(self, kept: float) -> float:
        """Count one sequence through the whole model, of which a fraction `kept` remains."""
        return self.layers * kept * (self.attention() + self.mlp()) + self.head()

    # -- sensitivity measurement -----------------------------------------------------------

    def gradients(self) -> float:
        """Count a forward pass, then each layer again with the gradient of its inputs only."""
        hidden, heads = self.geometry.hidden_size, self.geometry.num_attention_heads
        moments = 2 * 2.0 * hidden**2 * _TRIANGLE
        masks = 2 * 2.0 * heads * self.geometry.head_dim**2
        layer = 3 * (self.attention() + self.mlp()) + self.length * (moments + masks)
        return self.parts.gradients * (self.layers * layer + 2 * self.head())

    def sensitivity(self) -> float:
        """Count the moments, the trial cuts and the effects of rotary pairs."""
        parts = self.parts
        if not parts.sensitivity:
            return 0.0
        layer = self.attention() + self.mlp()
        trials = len(trial_layers(self.layers)) * TRIALS_PER_LAYER + 1
        positions = min(TRIAL_CUT_POSITIONS, parts.trial_cut_tokens)
        return (
            parts.sensitivity * self.layers * (layer + self.grams())
            + parts.trial_cut_tokens / self.length * check_layer_passes(self.layers) * layer
            + positions / self.length * trials * self.head()
            + self.layers * self._pair_effects()
        )

    def grams(self) -> float:
        """Count the Gram matrices of one sequence in both modules of a layer."""
        return 2.0 * _TRIANGLE * self.length * (self.inner**2 + self.geometry.intermediate_size**2)

    def _pair_effects(self) -> float:
        """Count the key-value products weighted by each query, and their features, of a layer."""
        queries = min(PAIR_QUERIES, self.length) * min(PAIR_SEQUENCES, self.parts.sensitivity)
        heads, width = self.geometry.num_attention_heads, self.geometry.head_dim
        visible = (1 + 1 / PAIR_BLOCKS) / 2
        weighted = 2.0 * visible * self.length * width * (width + 3)
        return queries * heads * (weighted + 2.0 * width**3 + 2.0 * width**3)

    def sensitivity_factorisations(self) -> float:
        """Count the elimination of neurons in every layer and the refits of the trial cuts."""
        if not self.parts.sensitivity:
            return 0.0
        hidden, width = self.geometry.hidden_size, self.geometry.intermediate_size
        elimination = width**3 + 2 * width**3 / 3 + width**2 * hidden
        if METHODS[self.compression.method].value_basis == "coordinates":
            elimination += 3 * self.inner**3 + self.inner**2 * hidden  # of value dimensions
        metrics = 4 * hidden**3 / 3 + 2.0 * hidden**2 * (width + 2 * self.inner)
        refits = len(trial_layers(self.layers)) * self.own_refits(0.75, 0.5)
        return self.layers * (elimination + metrics) + refits * bool(self.parts.trial_cut_tokens)

    def own_refits(self, *fractions: float) -> float:
        """Count the refits of both modules of a layer to their own output.

        One factor of the MLP's moment serves all fractions that are kept.
        """
        hidden, width = self.geometry.hidden_size, self.geometry.intermediate_size
        total = width**3 / 3
        for kept in fractions:
            neurons, inner = kept * width, kept * self.inner
            total += 2.0 * neurons * (width - neurons) * hidden + neurons**2 * hidden
            total += 2.0 * inner * self.inner * (self.inner + inner + 3 * hidden)
            total += inner**3 / 3 + 2 * inner**2 * hidden
        return total

    def trial_compression(self) -> float:
        """Count the dense pass that all plans share, and their passes of the check set."""
        parts = self.parts
        if not parts.trial_fit:
            return 0.0
        layer = self.attention() + self.mlp()
        checks = self.sequence(1.0) + TRIAL_PLANS * (self.kept * self.layers * layer + self.head())
        fit = parts.trial_fit * self.layers * (layer + self.grams())
        return fit + parts.judged_tokens / self.length * checks

    def masks(self) -> float:
        """Count a forward pass of each step, then each layer again with its inputs' gradient."""
        layer = 3 * (self.attention() + self.mlp())
        steps = self.parts.mask_tokens / self.length
        return steps * (self.layers * layer + 2 * self.head())

    def units(self) -> float:
        """Count the pass over the calibration, and the removal of modules or layers one by one."""
        parts, layer = self.parts, self.attention() + self.mlp()
        measured = parts.activations * self.layers * layer
        removed = (1.0 - self.kept) * self.layers
        if METHODS[self.compression.method].layers is not None and not self._is_whole(removed):
            measured *= 2  # influences of layers, then scores of the neurons of the next one
        removals = layer_removal_passes(self.layers, removed)
        measured += parts.layer_tokens / self.length * removals * layer
        if not parts.attention_tokens:
            return measured
        dense = self.geometry.dense_layer()
        shape = dense.mlp_parameters(self.geometry) / dense.attention_parameters(self.geometry)
        removed = self.layers * math.pow(1.0 - self.kept, shape / ALPHA)
        passes = attention_passes(self.layers, removed) * layer
        heads = removed * self.layers * self.head()
        return measured + parts.attention_tokens / self.length * (passes + heads)

    @staticmethod
    def _is_whole(layers: float) -> bool:
        """Return whether no MLP has to make up for a part of a layer."""
        return abs(layers - round(layers)) < 1e-6

    # -- the compression -------------------------------------------------------------------

    @property
    def _selects_first(self) -> bool:
        """True if sensitivity chooses all dimensions before the layer's statistics."""
        return METHODS[self.compression.method].measures_sensitivity

    def passes(self, sequences: int) -> float:
        """Count all passes of the modules.

        The dense, pruned and sliced modules run on the compressed hidden states, and the dense
        module also on the dense ones. The dense down projection is not computed on the compressed
        hidden states. The inner activations of an attention that is sliced before its refit are
        used again after it, up to a number that is neglected here.
        """
        kept, dense = self.kept, METHODS[self.compression.method].dense_target
        sliced = kept if self._selects_first else 2 * kept
        attention = (1 + sliced + dense) * self.attention()
        if self._decomposes_attention:
            attention = kept * self.attention() + self._projections()
        inner = 1 - 1 / self.geometry.mlp_projections
        if METHODS[self.compression.method].residual_parts:
            inner = (
                1 + inner * kept
            )  # the dense module with its output, and the one that reads less
        return sequences * self.layers * (attention + (inner + kept + dense) * self.mlp())

    @property
    def _decomposes_attention(self) -> bool:
        """True if the attention is factorised by moments of its heads, without a refit."""
        return METHODS[self.compression.method].value_basis == "two_svds"

    def _projections(self) -> float:
        """Count the queries, keys and values of one sequence, and the moments of the values."""
        groups, width = self.geometry.num_key_value_heads, self.geometry.head_dim
        rows = self.inner + 2 * groups * width
        return 2.0 * self.length * (self.geometry.hidden_size * rows + groups * width**2)

    # -- the residual stream (slicegpt) ----------------------------------------------------

    @functools.cached_property
    def stream_width(self) -> int:
        """Width of the sliced residual stream in the first layer; 0 where it is not sliced."""
        if not METHODS[self.compression.method].slices_residual or self.kept == 1.0:
            return 0
        return residual_plan(self.geometry, 1.0 - self.kept, 1, 1.0).input_width(self.geometry)

    def direct_passes(self) -> float:
        """Count the passes of methods without refit.

        Where the residual stream is sliced, every module runs twice: for the basis of the stream
        after it, to which it writes dense outputs, and sliced.
        """
        width, hidden = self.stream_width, self.geometry.hidden_size
        if not width:
            return self.unit_passes()
        outputs = hidden * (self.inner + self.geometry.intermediate_size)
        dense = self.geometry.dense_layer().parameters(self.geometry)
        share = width / hidden
        weights = 2 * share * (dense - outputs) + (1 + share) * outputs
        shortcuts = 2 * width * (width + hidden)
        scores = 2 * 2.0 * self.length * self.inner
        token = 2.0 * (weights + shortcuts) + scores
        return self.samples * self.length * self.layers * token

    def stream_statistics(self) -> float:
        """Count the second moments of the residual stream at both sites of every layer."""
        tokens = self.samples * self.length * bool(self.stream_width)
        return 2 * self.layers * tokens * 2.0 * _TRIANGLE * self.geometry.hidden_size**2

    def rotations(self) -> float:
        """Count the eigenbasis of every site, and the weights in these bases."""
        width, hidden = self.stream_width, self.geometry.hidden_size
        if not width:
            return 0.0
        weights = 2.0 * width * self.geometry.dense_layer().parameters(self.geometry)
        return self.layers * (2 * _EIGENBASIS * hidden**3 + weights + 4.0 * width**2 * hidden)

    def unit_passes(self) -> float:
        """Count the dense and the sliced layers where units are scored layer after layer."""
        units = METHODS[self.compression.method].units
        if units is None or units.inputs == "dense":
            return 0.0
        layer = self.attention() + self.mlp()
        return self.samples * self.layers * (1.0 + self.kept) * layer

    def statistics(self, sequences: int) -> float:
        """Count the Gram and cross moments of both modules."""
        hidden, width = self.geometry.hidden_size, self.geometry.intermediate_size
        corrects = METHODS[self.compression.method].dense_target
        share = self.kept if self._selects_first else 1.0
        inner, neurons = share * self.inner, share * width
        if self._decomposes_attention:
            inner = 0.0
        grams = _TRIANGLE * (inner**2 + neurons**2) + neurons * (width - neurons)
        crosses = inner * hidden + corrects * (inner + neurons) * hidden
        if METHODS[self.compression.method].residual_parts:
            grams += 2 * _TRIANGLE * hidden**2
            crosses += neurons * hidden
        return 2.0 * sequences * self.length * self.layers * (grams + crosses)

    def fits(self, own: int, correction: int) -> float:
        """Count the solves of both modules of all layers, and the comparison of dampings."""
        hidden, width = self.geometry.hidden_size, self.geometry.intermediate_size
        method, held_out = METHODS[self.compression.method], own > 1
        compared = self._compared(own, correction) if held_out else 0
        final = 1 + (correction > 0)
        probes = min(hidden, DAMPING_PROBES)
        projected = 2.0 * self.inner**2 * self.kept * hidden
        if not self._selects_first:
            projected += (1 + held_out) * 2.0 * self.inner**3 * self.kept * (1 + self.kept)
        share = self.kept if self._selects_first else 1.0
        crosses = (1 + held_out) * 2.0 * share * width**2 * hidden

        def solves(size: float) -> float:
            factors = (compared + final) * size**3 / 3
            products = (final + 2 + held_out) * hidden + 4 * compared * probes
            return factors + 2.0 * size**2 * products

        both = solves(width * self.kept)
        if self._decomposes_attention:
            projected = 0.0
        else:
            both += solves(self.inner * self.kept)
        if method.neuron_choice == "leverage":
            both += width**3  # the inverse of the whole Gram matrix
        if method.residual_parts:
            both += self._residual_part_fits()
        return self.layers * (projected + crosses + both)

    def _compared(self, own: int, correction: int) -> int:
        """Return the number of factorisations that compare the dampings of a module.

        One device skips those beyond the least error; several factorise for all candidates at once.
        """
        method, devices = METHODS[self.compression.method], self.compression.devices
        if devices > 1:
            counts = (own * self.folds, correction * self.folds)
            return sum(math.ceil(count / devices) for count in counts)
        candidates = {*method.damping_own, *method.damping_correction}
        return min(len(candidates), TRIED_DAMPINGS) * self.folds

    def _residual_part_fits(self) -> float:
        """Count the choice of a layer's reads and neurons, and the refit of what reads."""
        hidden, width = self.geometry.hidden_size, self.geometry.intermediate_size
        keys = 2 * self.geometry.num_key_value_heads * self.geometry.head_dim
        outputs = self.inner + keys + (self.geometry.mlp_projections - 1) * width
        reads = 2 * 5 * hidden**3 / 3 + 5.0 * hidden**2 * outputs
        return reads + 5 * width**3 / 3 + 3.0 * width**2 * hidden

    def _solve(self, width: float, tries: int) -> float:
        """Count the factor, the solution and its error per damping, and the prior's residual."""
        product = 2.0 * width**2 * self.geometry.hidden_size
        return tries * (width**3 / 3 + 2 * product) + 2 * product
