"""Which shapes a model gets, and what is known of its layers (section 4 of docs/method.md)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from intraslice_core import linalg
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
from intraslice_core.allocation.fisher import LayerScores, fisher_plan
from intraslice_core.allocation.lagrangian import lagrangian_plan
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.config import CompressionSettings
from intraslice_core.export.targets import DEMANDS
from intraslice_core.methods import METHODS
from intraslice_core.plan import ModelGeometry, Module
from intraslice_core.sensitivity.gradients import GradientFiles, LayerGradients, loss_gradients
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import ModelSensitivity, measure_layers
from intraslice_core.sensitivity.trial_cuts import TrialCut

SENSITIVITY_FRACTION = 4
"""One calibration sequence in so many is learnt from, but at least `MIN_SENSITIVITY_SEQUENCES`."""
MIN_SENSITIVITY_SEQUENCES = 32
GRADIENT_FRACTION = 8
MIN_GRADIENT_SEQUENCES = 8
CHECK_FRACTION = 16
MAX_CHECK_SEQUENCES = 8
"""Sequences that trials and the comparison of plans are measured on; all trials pass them."""
GRADIENT_SHARE = 0.4
"""Of the estimator's time."""
_SCALE_BOUNDS: dict[Module, tuple[float, float]] = {"attention": (1.0, 8.0), "mlp": (0.5, 8.0)}
"""A trial is measured on few tokens of one kind of text. Where attention's scale could fall to 0.5,
much of it was cut: on SmolLM2-135M no loss on the calibration's own kind of text, but on others."""
_RANKING_BOUNDS: dict[Module, tuple[float, float]] = {
    "attention": (0.25, 16.0),
    "mlp": (0.25, 16.0),
}
"""Where nothing is decided by a scale, only predicted."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSplit:
    """Which calibration sequences do what; those that check are learnt from by nobody."""

    learning: Tensor
    gradients: Tensor
    check: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> CalibrationSplit:
        """Split (samples, length). A calibration of one sequence checks on what it learns from."""
        samples = len(tokens)
        checks = min(MAX_CHECK_SEQUENCES, max(samples // CHECK_FRACTION, 1))
        rest = tokens[: samples - checks] if samples > checks else tokens
        learning = max(MIN_SENSITIVITY_SEQUENCES, samples // SENSITIVITY_FRACTION)
        gradients = max(MIN_GRADIENT_SEQUENCES, samples // GRADIENT_FRACTION)
        return cls(
            learning=rest[:learning], gradients=rest[:gradients], check=tokens[samples - checks :]
        )


def measure_sensitivity(
    layers: DenseLayers,
    tokens: CalibrationSplit,
    *,
    batch_size: int,
    before_batch: Callable[[float], None],
) -> ModelSensitivity:
    """Gradients, then the walk; gradients lie on disk in between."""
    with tempfile.TemporaryDirectory(prefix="intraslice-gradients-") as folder:
        files = GradientFiles(directory=Path(folder))
        loss_gradients(
            layers,
            tokens.gradients,
            batch_size=batch_size,
            files=files,
            before_batch=lambda done: before_batch(GRADIENT_SHARE * done),
        )
        return measure_layers(
            layers,
            tokens.sensitivity,
            tokens.check,
            files,
            batch_size=batch_size,
            before_batch=lambda done: before_batch(GRADIENT_SHARE + (1 - GRADIENT_SHARE) * done),
        )


# -- the Lagrangian allocator ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AttentionCandidate:
    """What of the attention is for sale, and how dear."""

    heads: bool
    """Whether heads may go, and not only dimensions of all of them."""
    price: float
    """What attention's predicted losses are multiplied by."""


def lagrangian_shapes(
    measured: ModelSensitivity,
    geometry: ModelGeometry,
    budget: int,
    settings: CompressionSettings,
    candidate: AttentionCandidate,
) -> ScoredPlan:
    """Shapes of least predicted loss within `budget` compressible parameters.

    Heads are offered to methods that know which; whole modules where the cap allows all to go.
    """
    attention = trial_scales(measured.trials, "attention", len(measured.layers))
    mlp = trial_scales(measured.trials, "mlp", len(measured.layers))
    demands = DEMANDS[settings.target]
    fixed = "heads" in demands.shapes.same_across_layers
    some_heads = candidate.heads and METHODS[settings.method].cuts_heads and not fixed
    curves = ModelCurves(
        geometry=geometry,
        layers=tuple(
            _curves(layer, geometry, settings.round_to, (candidate.price * one, other), some_heads)
            for layer, one, other in zip(measured.layers, attention, mlp, strict=True)
        ),
    )
    whole = frozenset[Module](("attention", "mlp") if settings.module_cap == 1.0 else ())
    constraint = demands.constraint(whole)
    scored = lagrangian_plan(curves, budget, module_cap=settings.module_cap, constraint=constraint)
    prices = (
        replace(one, attention=one.attention / candidate.price) for one in scored.layer_losses
    )
    return replace(scored, layer_losses=tuple(prices))


def _curves(
    layer: LayerSensitivity,
    geometry: ModelGeometry,
    round_to: int,
    scales: tuple[float, float],
    some_heads: bool,
) -> LayerCurves:
    attention, mlp = scales
    return LayerCurves(
        attention=AttentionCurves(
            pairs=pair_curve(attention * layer.pair_losses.numpy(), round_to),
            values=Curve.from_losses(attention * layer.value_losses.numpy(), round_to),
            heads=(
                *_head_options(layer, attention, some=some_heads),
                *all_heads(geometry),
            ),
        ),
        widths=Curve.from_losses(mlp * layer.width_losses.numpy(), round_to, removable=True),
    )


def _head_options(layer: LayerSensitivity, scale: float, *, some: bool) -> Iterator[HeadOption]:
    """None of the heads and, if wanted, every rectangle of some of them."""
    losses, shares = scale * layer.head_losses, layer.head_shares
    yield HeadOption(heads_per_group=0, groups=0, loss=float(losses[0, 0]))
    most, each = (size - 1 for size in losses.shape)
    for groups, heads in product(range(1, most + 1), range(1, each + 1)):
        if some and (groups, heads) != (most, each):
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
    """Measured over predicted loss of a module by layer, interpolated between the trials' layers.

    A layer's trials are added up first: the larger cut, which is measured better, counts more.
    """
    found: dict[int, tuple[float, float]] = {}
    for trial in trials:
        if trial.module == module:
            predicted, measured = found.get(trial.layer, (0.0, 0.0))
            found[trial.layer] = (predicted + trial.predicted, measured + trial.measured)
    if not found:
        return [1.0] * layers
    spots = sorted(found)
    logarithms = _smoothed(np.log([_scale(*found[spot], bounds[module]) for spot in spots]))
    return [float(one) for one in np.exp(np.interp(np.arange(layers), spots, logarithms))]


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value half itself, half its neighbours: neighbouring layers are much alike."""
    padded = np.pad(values, 1, mode="edge")
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


def _scale(predicted: float, measured: float, bounds: tuple[float, float]) -> float:
    """1 where there is nothing to scale."""
    if predicted <= 1e-9:
        return 1.0
    return float(np.clip(measured / predicted, *bounds))


def trial_rank_correlation(trials: Sequence[TrialCut]) -> float | None:
    """How well curves rank cuts that they were not scaled by (Spearman).

    Every trial is predicted by its layer's curve, scaled by the layer's other trials of the same
    module, within wider bounds than the allocator's. None where there are fewer than 12.
    """
    predicted, measured = [], []
    for trial in trials:
        others = [one for one in trials if one is not trial and one.layer == trial.layer]
        scales = trial_scales(others, trial.module, trial.layer + 1, _RANKING_BOUNDS)
        predicted.append(scales[trial.layer] * trial.predicted)
        measured.append(trial.measured)
    if len(measured) < 12 or np.ptp(measured) == 0.0:
        return None
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (predicted, measured)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


# -- the paper's allocator ---------------------------------------------------------------------


def fisher_shapes(
    layers: DenseLayers,
    tokens: CalibrationSplit,
    geometry: ModelGeometry,
    budget: int,
    settings: CompressionSettings,
    *,
    rotated: bool,
    before_batch: Callable[[float], None],
) -> ScoredPlan:
    """Shapes by the paper's estimator; `rotated` takes head scores in the PCA basis."""
    with tempfile.TemporaryDirectory(prefix="intraslice-gradients-") as folder:
        files = GradientFiles(directory=Path(folder))
        loss_gradients(
            layers,
            tokens.gradients,
            batch_size=settings.batch_size,
            files=files,
            before_batch=before_batch,
        )
        scores = [
            _fisher_scores(files.read(layer), geometry, rotated)
            for layer in range(layers.num_layers)
        ]
    return fisher_plan(
        geometry,
        scores,
        budget,
        round_to=settings.round_to,
        module_cap=settings.module_cap,
        attention_bias=settings.attention_bias,
    )


def _fisher_scores(found: LayerGradients, geometry: ModelGeometry, rotated: bool) -> LayerScores:
    """Squared mask gradients, summed over groups of sequences."""
    masks = found.head_masks.double()
    if rotated:
        groups = geometry.num_key_value_heads
        heads = found.head_moments.double()
        moment = heads.view(groups, -1, *heads.shape[1:]).sum(1)
        _, vectors = linalg.eigenbasis(moment)
        basis = vectors.repeat_interleave(heads.shape[0] // groups, 0)
        masks = basis.mT @ masks @ basis
    head_scores = masks.diagonal(dim1=-2, dim2=-1).square().sum(0)
    return LayerScores(
        heads=head_scores.numpy(), neurons=found.neuron_masks.double().square().sum(0).numpy()
    )
