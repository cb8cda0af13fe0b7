"""Shapes from measured sensitivity or from Fisher scores (docs/method.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product, zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.allocation.budget import resolve_round_to
from intraslice_core.allocation.compressed_input import within_input
from intraslice_core.allocation.context import ignore_resumed
from intraslice_core.allocation.curves import (
    AttentionCurves,
    Curve,
    HeadOption,
    LayerCurves,
    ModelCurves,
    ScoredPlan,
    all_heads,
    pair_curve,
)
from intraslice_core.allocation.fast_shapes import fast_shapes, prefer_fast_shapes
from intraslice_core.allocation.fisher import LayerScores, fisher_plan
from intraslice_core.allocation.lagrangian import lagrangian_plan
from intraslice_core.allocation.saved_measurement import SavedMeasurement, gradient_files
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.config import CompressionSettings
from intraslice_core.device import return_free_memory
from intraslice_core.export.targets import DEMANDS, TargetDemands
from intraslice_core.methods import METHODS
from intraslice_core.plan import ModelGeometry, Module, ShapeConstraint
from intraslice_core.ranks import MAIN
from intraslice_core.sensitivity.gradients import GradientFiles, LayerGradients, loss_gradients
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import ModelSensitivity, measure_layers
from intraslice_core.sensitivity.trial_cuts import TrialCut

SENSITIVITY_FRACTION = 8
"""Fraction of the calibration, 1 sequence in this many, for the pass over the dense model."""
MIN_SENSITIVITY_TOKENS = 16_384
METRIC_FRACTION = 16
"""Fraction of the calibration, 1 sequence in this many, for the Fisher matrices."""
MIN_METRIC_TOKENS = 8192
"""With 4,096 tokens, SmolLM2-135M had perplexities 0.4 % higher on average over four texts, with
12,288 ones 0.8 % lower (one seed, the same sequences)."""
GRADIENT_FRACTION = 8
"""Fraction of the calibration, 1 sequence in this many, for the paper's estimator."""
MIN_GRADIENT_SEQUENCES = 8
CHECK_FRACTION = 8
"""Fraction of the calibration, 1 sequence in this many, for the check set."""
MAX_CHECK_SEQUENCES = 8
"""Maximum size of the check set, and of the set that trial compressions are judged on."""
MAX_JUDGED_TOKENS = 4096
"""Tokens on which trial compressions are judged, at most."""
TRIAL_FIT_TOKENS = 2048
"""Tokens that trial compressions refit projections on, at least.

Few are enough, because only differences between plans matter.
"""
GRADIENT_SHARE = 0.2
"""Share of the measurement's time that gradients take."""
_SCALE_BOUNDS: dict[Module, tuple[float, float]] = {"attention": (1.0, 8.0), "mlp": (0.5, 8.0)}
"""Bounds of the factor by which trial cuts scale a module's curve.

Trials are measured on few tokens of in-domain text. With a lower bound of 0.5 for attention, much
of it was cut on SmolLM2-135M, without loss on in-domain text but with loss on out-of-domain text.
"""
_MODULES: tuple[Module, Module] = ("attention", "mlp")
_RANKING_BOUNDS: dict[Module, tuple[float, float]] = {
    "attention": (0.25, 16.0),
    "mlp": (0.25, 16.0),
}
"""Wider bounds for the rank correlation, where the scale only predicts."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSplit:
    """Calibration sequences by use, each (sequences, length), int64."""

    sensitivity: Tensor
    """Sequences of the pass over the dense model."""
    metric: Tensor
    """Sequences for the Fisher matrices, a part of those of `sensitivity`."""
    gradients: Tensor
    """Sequences for the paper's estimator."""
    trial_fit: Tensor
    """Sequences that trial compressions refit on, a part of those of `sensitivity`."""
    check: Tensor
    """Check set for trial cuts; disjoint from all sets above."""
    judged: Tensor
    """Beginnings of the sequences on which trial compressions are judged; disjoint likewise.

    All kinds of text have equally many if there are enough.
    """
    judged_kinds: Tensor
    """Number of the source of each of these sequences, (sequences,), int64."""
    prefix_length: int = 0
    """Positions of the prefix at the beginning of every sequence."""

    @property
    def measured(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sequences that the sensitivity depends on."""
        return self.metric, self.sensitivity, self.check

    @classmethod
    def of(
        cls, tokens: Tensor, kinds: Tensor | None = None, prefix_length: int = 0
    ) -> CalibrationSplit:
        """Split the calibration, (samples, length); a single sequence is used for everything.

        Args:
            tokens: calibration, (samples, length), int64.
            kinds: number of each sequence's source, (samples,), int64; None for a single one.
            prefix_length: positions of the prefix at the beginning of every sequence.
        """
        samples = len(tokens)
        kinds = torch.zeros(samples, dtype=torch.int64) if kinds is None else kinds
        checks = min(MAX_CHECK_SEQUENCES, max(samples // CHECK_FRACTION, 1))
        judged = _judged_sequences(kinds, checks)
        fits = torch.ones(samples, dtype=torch.bool)
        fits[samples - checks :] = fits[judged] = False
        rest = tokens[fits] if fits.any() else tokens

        def first(least_tokens: int, fraction: int) -> Tensor:
            return rest[: max(-(-least_tokens // tokens.shape[1]), samples // fraction)]

        return cls(
            sensitivity=first(MIN_SENSITIVITY_TOKENS, SENSITIVITY_FRACTION),
            metric=first(MIN_METRIC_TOKENS, METRIC_FRACTION),
            gradients=rest[: max(MIN_GRADIENT_SEQUENCES, samples // GRADIENT_FRACTION)],
            trial_fit=first(TRIAL_FIT_TOKENS, samples),
            check=tokens[samples - checks :],
            judged=tokens[judged, : MAX_JUDGED_TOKENS // checks],
            judged_kinds=kinds[judged],
            prefix_length=prefix_length,
        )


def _judged_sequences(kinds: Tensor, count: int) -> Tensor:
    """Return the numbers of the sequences to judge plans on, ascending, (count,), int64.

    They are the last of every kind in turn: kinds have about equal weights in a plan's score, so
    its standard error is least with about equally many positions of each. Without room for all
    kinds they are the last sequences.
    """
    by_kind = [(kinds == kind).nonzero().flatten().flip(0).tolist() for kind in torch.unique(kinds)]
    if len(by_kind) > count:
        return torch.arange(len(kinds) - count, len(kinds))
    in_turn = [row for turn in zip_longest(*by_kind) for row in turn if row is not None]
    return torch.tensor(sorted(in_turn[:count]), dtype=torch.int64)


def measure_sensitivity(  # noqa: PLR0913 (one measurement, and where it resumes)
    layers: DenseLayers,
    tokens: CalibrationSplit,
    *,
    batch_size: int,
    before_batch: Callable[[float], None],
    with_trial_cuts: bool = True,
    with_value_dims: bool = False,
    saved: SavedMeasurement | None = None,
    on_resumed: Callable[[float, float], None] = ignore_resumed,
) -> ModelSensitivity:
    """Compute gradients, then measure all layers; gradients are on disk in between.

    An interrupted measurement resumes after the last part of the gradients, or the last layer.

    Args:
        layers: the dense model.
        tokens: calibration sequences by use.
        batch_size: sequences in one batch.
        before_batch: callback with the finished fraction; may raise to stop.
        with_trial_cuts: measure the trial cuts, which only the Lagrangian allocator uses.
        with_value_dims: also measure the removal order of value dimensions as they are.
        saved: finished parts of an interrupted measurement and place for those of this one, on the
            main rank; None elsewhere, and where nothing is saved.
        on_resumed: called with the fractions at begin and end of a part that was restored.

    Raises:
        NumericalError: naming the layer.
    """
    ranks = layers.ranks
    finished = ranks.computed(MAIN, lambda: 0 if saved is None else saved.finished())
    layers_share = 1 - GRADIENT_SHARE
    with gradient_files(saved, len(tokens.metric), ranks) as files:
        loss_gradients(
            layers,
            tokens.metric,
            batch_size=batch_size,
            files=files,
            before_batch=lambda done: before_batch(GRADIENT_SHARE * done),
            prefix_length=tokens.prefix_length,
            first_layer=finished,
            on_resumed=lambda done: on_resumed(0.0, GRADIENT_SHARE * done),
        )
        return_free_memory()
        return measure_layers(
            layers,
            tokens.sensitivity,
            tokens.check if with_trial_cuts else None,
            files,
            batch_size=batch_size,
            before_batch=lambda done: before_batch(GRADIENT_SHARE + layers_share * done),
            prefix_length=tokens.prefix_length,
            with_value_dims=with_value_dims,
            saved=saved,
            on_resumed=lambda done: on_resumed(
                GRADIENT_SHARE, GRADIENT_SHARE + layers_share * done
            ),
        )


# -- the Lagrangian allocator ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AllocationCandidate:
    """Prunable dimensions, and factors on the predicted losses."""

    heads: bool
    """Flag that allows removing heads, not only dimensions within all heads."""
    penalty: float
    """Factor on attention's predicted losses (report field `attention_price`)."""
    head_penalty: float = 1.0
    """Further factor on the predicted losses of removing heads or the whole attention."""
    trial_power: float = 1.0
    """Power of the trial cuts' scales that the curves are multiplied by; 0 ignores trial cuts."""


def lagrangian_shapes(
    measured: ModelSensitivity,
    geometry: ModelGeometry,
    budget: int,
    settings: CompressionSettings,
    candidate: AllocationCandidate,
    demands: TargetDemands | None = None,
    item_bytes: int | None = None,
) -> ScoredPlan:
    """Choose the shapes of least predicted loss within `budget` compressible parameters.

    Heads may be removed if the candidate, the method and the target allow it; whole modules if
    the module cap is 1. Predicted losses of the result do not include the candidate's factors.

    Args:
        measured: sensitivity of all layers.
        geometry: of the dense model.
        budget: maximum compressible parameters of all layers.
        settings: of the compression.
        candidate: prunable attention dimensions and penalty.
        demands: of the target on the model type; None for those on any.
        item_bytes: bytes of a stored weight, for `prefer_fast_shapes`; None ignores that setting.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    layers = len(measured.layers)
    attention, mlp = (
        [scale**candidate.trial_power for scale in trial_scales(measured.trials, module, layers)]
        for module in _MODULES
    )
    demands = demands or DEMANDS[settings.target]
    cut_heads = candidate.heads and METHODS[settings.method].cuts_heads and demands.cuts_heads
    round_to = resolve_round_to(settings, geometry)
    curves = ModelCurves(
        geometry=geometry,
        layers=tuple(
            _curves(
                layer,
                geometry,
                round_to,
                (candidate.penalty * attention_scale, mlp_scale),
                head_penalty=candidate.head_penalty,
                cut_heads=cut_heads,
            )
            for layer, attention_scale, mlp_scale in zip(
                measured.layers, attention, mlp, strict=True
            )
        ),
    )
    whole = frozenset[Module](("attention", "mlp") if settings.module_cap == 1.0 else ())
    constraint = demands.constraint(whole)

    def allocate(allowed: ShapeConstraint) -> ScoredPlan:
        scored = lagrangian_plan(curves, budget, module_cap=settings.module_cap, constraint=allowed)
        layer_losses = (
            replace(losses, attention=losses.attention / candidate.penalty)
            for losses in scored.layer_losses
        )
        return replace(scored, layer_losses=tuple(layer_losses))

    if item_bytes is None:
        return allocate(constraint)
    preferred = fast_shapes(settings, geometry, item_bytes, constraint)
    return prefer_fast_shapes(allocate, constraint, preferred)


def _curves(
    layer: LayerSensitivity,
    geometry: ModelGeometry,
    round_to: int,
    scales: tuple[float, float],
    *,
    head_penalty: float,
    cut_heads: bool,
) -> LayerCurves:
    """Return a layer's curves, scaled by factors for attention and MLP."""
    attention, mlp = scales
    return LayerCurves(
        attention=AttentionCurves(
            pairs=pair_curve(attention * layer.pair_losses.numpy(), round_to),
            values=Curve.from_losses(attention * layer.value_losses.numpy(), round_to),
            heads=(
                *_head_options(layer, head_penalty * attention, cut_heads=cut_heads),
                *all_heads(geometry),
            ),
        ),
        widths=Curve.from_losses(mlp * layer.width_losses.numpy(), round_to, removable=True),
    )


def _head_options(
    layer: LayerSensitivity, scale: float, *, cut_heads: bool
) -> Iterator[HeadOption]:
    """Yield the option without heads and, with `cut_heads`, every rectangle of some heads."""
    losses, shares = scale * layer.head_losses, layer.head_shares
    yield HeadOption(heads_per_group=0, groups=0, loss=float(losses[0, 0]))
    all_groups, group_size = (size - 1 for size in losses.shape)
    for groups, heads in product(range(1, all_groups + 1), range(1, group_size + 1)):
        if cut_heads and (groups, heads) != (all_groups, group_size):
            yield HeadOption(
                heads_per_group=heads,
                groups=groups,
                loss=float(losses[groups, heads]),
                share=float(shares[groups, heads]),
            )


def trial_scales(
    trials: Sequence[TrialCut],
    module: Module,
    layers: int,
    bounds: Mapping[Module, tuple[float, float]] = _SCALE_BOUNDS,
) -> list[float]:
    """Return measured over predicted loss of a module for every layer.

    Scales are bounded, smoothed over neighbouring layers with trials, and interpolated between
    them in the logarithm. A layer's trials are added up first, so that the larger cut, whose
    measurement is less noisy, counts more. Without trials all scales are 1.

    Args:
        trials: trial cuts of any modules.
        module: module to scale.
        layers: number of layers.
        bounds: smallest and largest scale of each module.
    """
    losses: dict[int, tuple[float, float]] = {}
    for trial in trials:
        if trial.module == module:
            predicted, measured = losses.get(trial.layer, (0.0, 0.0))
            losses[trial.layer] = (predicted + trial.predicted, measured + trial.measured)
    if not losses:
        return [1.0] * layers
    trial_layers = sorted(losses)
    scales = [_scale(*losses[layer], bounds[module]) for layer in trial_layers]
    logarithms = np.interp(np.arange(layers), trial_layers, _smoothed(np.log(scales)))
    return [float(scale) for scale in np.exp(logarithms)]


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth with weights ¼, ½, ¼: neighbouring layers behave similarly."""
    padded = np.pad(values, 1, mode="edge")
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


def _scale(predicted: float, measured: float, bounds: tuple[float, float]) -> float:
    """Return measured over predicted loss within bounds, or 1 if nothing is predicted."""
    if predicted <= 1e-9:
        return 1.0
    return float(np.clip(measured / predicted, *bounds))


def trial_rank_correlation(trials: Sequence[TrialCut]) -> float | None:
    """Return the Spearman rank correlation of predicted and measured losses of trial cuts.

    Each trial is predicted by its layer's curve, scaled by the layer's other trials of the same
    module within wider bounds than the allocator's. None for fewer than 12 trials.
    """
    predicted, measured = [], []
    for trial in trials:
        others = [other for other in trials if other is not trial and other.layer == trial.layer]
        scales = trial_scales(others, trial.module, trial.layer + 1, _RANKING_BOUNDS)
        predicted.append(scales[trial.layer] * trial.predicted)
        measured.append(trial.measured)
    if len(measured) < 12 or np.ptp(measured) == 0.0:
        return None
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (predicted, measured)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


# -- the Fisher allocator ----------------------------------------------------------------------


def fisher_shapes(  # noqa: PLR0913 (one estimator, and where it resumes)
    layers: DenseLayers,
    tokens: CalibrationSplit,
    geometry: ModelGeometry,
    budget: int,
    settings: CompressionSettings,
    *,
    rotated: bool,
    before_batch: Callable[[float], None],
    saved: SavedMeasurement | None = None,
    on_resumed: Callable[[float], None] | None = None,
) -> ScoredPlan:
    """Compute Fisher scores and allocate by them (arXiv 2602.01975).

    Args:
        layers: the dense model.
        tokens: calibration sequences by use; only those for gradients are used.
        geometry: of the dense model.
        budget: maximum compressible parameters of all layers.
        settings: of the compression.
        rotated: score heads in their PCA bases (`fisher_pca`).
        before_batch: callback with the finished fraction; may raise to stop.
        saved: place of scores, and from which gradients resume, on the main rank; None elsewhere,
            and where nothing is saved.
        on_resumed: called with the finished fraction of an interrupted run, if there is one.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
        NumericalError: naming the layer.
    """
    scores = layers.ranks.computed(MAIN, lambda: None if saved is None else saved.scores())
    if scores is None:
        with gradient_files(saved, len(tokens.gradients), layers.ranks) as files:
            loss_gradients(
                layers,
                tokens.gradients,
                batch_size=settings.batch_size,
                files=files,
                before_batch=before_batch,
                prefix_length=tokens.prefix_length,
                on_resumed=on_resumed,
            )
            scores = _scores_of_layers(layers, files, geometry, rotated)
            if saved is not None:
                saved.save_scores(scores)
    elif on_resumed is not None:
        on_resumed(1.0)

    def allocate(parameters: int) -> ScoredPlan:
        return fisher_plan(
            geometry,
            scores,
            parameters,
            round_to=resolve_round_to(settings, geometry),
            module_cap=settings.module_cap,
            attention_bias=settings.attention_bias,
        )

    return within_input(allocate, geometry, budget)


def _scores_of_layers(
    layers: DenseLayers, files: GradientFiles, geometry: ModelGeometry, rotated: bool
) -> list[LayerScores]:
    """Return the scores of all layers, each computed by the rank that owns it."""
    ranks = layers.ranks

    def scored(layer: int) -> LayerScores:
        return _fisher_scores(files.read(layer), geometry, rotated, layers.device)

    return [
        ranks.computed(ranks.owner(layer), partial(scored, layer))
        for layer in range(layers.num_layers)
    ]


def _fisher_scores(
    gradients: LayerGradients, geometry: ModelGeometry, rotated: bool, device: torch.device
) -> LayerScores:
    """Return squared mask gradients, summed over groups of sequences."""
    masks = gradients.head_masks.to(device).double()
    if rotated:
        groups = geometry.num_key_value_heads
        heads = gradients.head_moments.to(device).double()
        moment = heads.view(groups, -1, *heads.shape[1:]).sum(1)
        _, vectors = linalg.eigenbasis(moment)
        basis = vectors.repeat_interleave(heads.shape[0] // groups, 0)
        masks = basis.mT @ masks @ basis
    head_scores = masks.diagonal(dim1=-2, dim2=-1).square().sum(0)
    neuron_scores = gradients.neuron_masks.double().square().sum(0)
    return LayerScores(heads=head_scores.cpu().numpy(), neurons=neuron_scores.numpy())
