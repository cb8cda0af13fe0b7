"""Report of a compression: immutable and serialisable, without torch.

CompressionReport
├── config, geometry, plan          request, dense dimensions, retained dimensions
├── allocation: AllocationReport    allocator of the plan, and its predicted loss
│   ├── layers: LayerPrediction
│   └── trials: TrialReport         predicted and measured loss of trial cuts
├── tournament: TournamentReport    choice of the method, for `auto`
├── layers: LayerReport             compensation of each layer
│   └── attention, mlp: ModuleReport
│       └── spectra: SpectrumReport, one per reduced dimension
├── recovery: RecoveryReport        recovery fine-tuning
│   └── held_out: HeldOutPerplexity, losses: LossPoint
└── evaluation: EvaluationReport    comparison of the dense and the compressed model
    ├── perplexity: PerplexityComparison, one per text
    ├── tasks: TaskComparison, one per metric
    ├── speed: SpeedReport
    │   └── whole, attention, mlp, layers: one PhaseComparison per phase
    ├── speed_grid: LoadReport, one per load
    └── continuations: ContinuationComparison, one per prompt
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from intraslice_core.config import (
    Allocation,
    Allocator,
    CompressionConfig,
    EvaluationConfig,
    ExportFormat,
    FrozenModel,
    Method,
    RecoveryConfig,
)
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, Module, SelectedDimension
from intraslice_core.reports.fast_shapes import FastShapesReport
from intraslice_core.reports.tournament import TournamentReport
from intraslice_core.text_sources import (
    IN_DOMAIN_ONLY_WARNING,
    TOLERATED_OVERLAP,
    Domain,
    in_domain_only,
    overlap_warning,
)

SCHEMA_VERSION = 2
"""Version 1 wrote `intraslice_plus` as "intraslice" and `intraslice` as "paper"."""
_METHODS_OF_VERSION_1 = {"intraslice": "intraslice_plus", "paper": "intraslice"}
REPORT_FILE = "intraslice_report.json"
"""File name of the report within a checkpoint."""
MAX_LOSS_POINTS = 50

LossWeighting = Literal["fisher", "residual_norm"]
"""Weighting of the predicted loss: by second moments of the gradients, or, without gradients, by
1 / E‖x‖² of the hidden states."""


class SpectrumReport(FrozenModel):
    """Spectrum by which a dimension was reduced, in descending order of value."""

    dimension: SelectedDimension = Field(
        description="Dimension; reads and writes are of the residual stream."
    )
    measure: Literal["eigenvalue", "loss", "score"] = Field(
        description="Measure of the spectrum. eigenvalue: eigenvalue of the weighted second moment "
        "of the values. loss: predicted loss increase of removing the dimension next. score: the "
        "method's ranking score, where it predicts no loss."
    )
    size: int = Field(description="Number of ranks.")
    kept: int = Field(description="Number of retained ranks.")
    kept_share: float = Field(description="Share of the retained ranks in the sum of all values.")
    ranks: tuple[int, ...] = Field(description="Reported ranks, from 0; thinned to about 40.")
    values: tuple[float, ...] = Field(
        description="Values at these ranks, as fractions of the sum of all values."
    )


class ModuleReport(FrozenModel):
    """Compensation of one module."""

    module: Module
    explained_energy: float | None = Field(
        default=None,
        description="Retained energy of inner activations or a sliced residual stream, in [0, 1].",
    )
    relative_error: float | None = Field(
        default=None, description="‖output - target‖² / ‖target‖² on the calibration tokens."
    )
    damping: dict[str, float] = Field(
        default_factory=dict, description="Damping λ used in the end, by factorisation."
    )
    spectra: tuple[SpectrumReport, ...] = ()


class LayerReport(FrozenModel):
    """Retained dimensions and compensation of one decoder layer."""

    layer: int = Field(ge=0)
    plan: LayerPlan
    attention: ModuleReport
    mlp: ModuleReport
    seconds: float = Field(ge=0.0, description="Duration of the layer's compression in seconds.")


class LayerPrediction(FrozenModel):
    """Loss increase predicted by the allocator for one layer's modules, in nats."""

    layer: int = Field(ge=0)
    attention: float
    mlp: float


class TrialReport(FrozenModel):
    """Trial cut of one module, with all other modules dense."""

    layer: int = Field(ge=0)
    module: Module
    cut: float = Field(description="Removed fraction of the module's dimensions.")
    predicted: float = Field(
        description="Loss increase predicted by the Fisher matrices alone, in nats."
    )
    measured: float = Field(
        description="Loss increase measured on calibration sequences held out for it, in nats."
    )


class CandidateReport(FrozenModel):
    """Candidate allocation with the loss of its trial compression."""

    heads: bool = Field(description="Whether whole heads may be removed, not only dimensions.")
    attention_price: float = Field(description="Factor on attention's predicted losses.")
    head_penalty: float = Field(default=1.0, description="Further factor on those of heads.")
    trial_cuts: bool = Field(default=True, description="Whether trial cuts scaled the losses.")
    trial_power: float = Field(default=1.0, description="Power of the trial cuts' scales.")
    early_mlp_penalty: float = Field(
        default=1.0,
        description="Factor on the predicted losses of the first MLP, which falls geometrically to "
        "1 at the last layer. Earlier versions alone had other factors than 1.",
    )
    calibration_loss: float = Field(
        description="Divergence KL(dense ‖ compressed) on held-out calibration text: the mean over "
        "the kinds of text plus half of the worst, in nats per token."
    )
    standard_error: float | None = Field(
        default=None,
        description="Standard error of the paired difference from the chosen candidate. A later "
        "candidate is chosen only if it is better by two standard errors.",
    )


class AllocationReport(FrozenModel):
    """Allocation of the budget: how much is removed from which module."""

    requested: Allocation
    allocator: Allocator = Field(description="Allocator of the plan's shapes.")
    fell_back: bool = Field(
        default=False,
        description="Whether the requested allocator was no better than uniform layers.",
    )
    fallback_reason: str | None = None
    weighting: LossWeighting | None = None
    calibration_loss: float | None = Field(
        default=None,
        description="Divergence of a trial compression with the requested allocator's shapes from "
        "the dense model, in nats per token, like `candidates.calibration_loss`.",
    )
    uniform_calibration_loss: float | None = Field(
        default=None,
        description="Divergence of a trial compression with equal layers of the same size, with "
        "whole attention where the budget allows it.",
    )
    unconstrained_calibration_loss: float | None = Field(
        default=None,
        description="Divergence of a trial compression with the free shapes of target research at "
        "the same size. The difference is the cost of the target.",
    )
    predicted_loss: float | None = Field(
        default=None, description="Sum of the predicted loss increases of all modules, in nats."
    )
    fast_shapes: FastShapesReport | None = None
    layers: tuple[LayerPrediction, ...] = ()
    candidates: tuple[CandidateReport, ...] = Field(
        default=(), description="Distinct candidate allocations, the best first."
    )
    trials: tuple[TrialReport, ...] = ()
    rank_correlation: float | None = Field(
        default=None,
        description="Spearman rank correlation of predicted and measured loss over the trial cuts, "
        "with each prediction scaled by the other trials of its module; from 12 trials on.",
    )


class PerplexityComparison(FrozenModel):
    """Perplexity of both models on one text, and the divergence of their predictions."""

    text: str
    domain: Domain | None = Field(
        default=None,
        description="Domain of the text, relative to the calibration and fine-tuning text. in: a "
        "source of the same corpus was used, or more than 1 % of the text's 13-grams of tokens "
        "occur in the calibration. out: neither. null: the sources are unknown.",
    )
    context_length: int = Field(description="Window length in tokens.")
    tokens: int = Field(description="Number of predicted tokens.")
    dense: float
    compressed: float
    kl: float | None = Field(
        default=None,
        description="Mean KL(dense ‖ compressed) in nats per predicted token, over the whole "
        "vocabulary; null where the vocabularies differ in size and in older reports.",
    )
    kl_stderr: float | None = Field(
        default=None, description="Standard error of `kl` over the predicted tokens."
    )
    top1_agreement: float | None = Field(
        default=None,
        description="Fraction of the predicted tokens for which both models' most likely tokens "
        "are equal.",
    )
    calibration_overlap: float | None = Field(
        default=None,
        description="Fraction of the text's 13-grams of tokens that occur in the calibration.",
    )
    begins_with_bos: bool = Field(
        default=False,
        description="True if every window begins with the special tokens that the tokenizer puts "
        "before a text, usually BOS; they are not scored.",
    )

    @property
    def ratio(self) -> float:
        """Perplexity ratio, compressed / dense; 1 means no loss."""
        return self.compressed / self.dense


class TaskComparison(FrozenModel):
    """Scores of both models in one metric of one task, on the same examples."""

    task: str
    metric: str
    higher_is_better: bool
    examples: int
    shots: int = Field(description="Number of solved examples shown before each question.")
    dense: float
    compressed: float
    dense_stderr: float | None = None
    compressed_stderr: float | None = None

    @property
    def ratio(self) -> float:
        """Score ratio: compressed / dense, or dense / compressed where lower is better.

        1 means no loss; it is also the ratio of two zeros.
        """
        reference, score = self.dense, self.compressed
        if not self.higher_is_better:
            reference, score = score, reference
        if reference == 0.0:
            return 1.0 if score == 0.0 else math.inf
        return score / reference


class PhaseComparison(FrozenModel):
    """Speed of both models in one phase, in tokens/s; medians over interleaved repeats."""

    dense: float
    compressed: float
    dense_spread: float = Field(description="Interquartile range in tokens/s.")
    compressed_spread: float = Field(description="Interquartile range in tokens/s.")
    ratio: float = Field(description="Speed-up: median over the repeats of compressed / dense.")


class PartSpeed(FrozenModel):
    """Prefill and decode speed of one part of the model."""

    prefill: PhaseComparison
    decode: PhaseComparison


class SpeedReport(FrozenModel):
    """Speed of both models, for the whole model and by part."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    whole: PartSpeed
    attention: PartSpeed | None = None
    mlp: PartSpeed | None = None
    layers: PartSpeed | None = Field(
        default=None, description="Decoder layers, without embedding and output head."
    )


class LossPoint(FrozenModel):
    """Mean fine-tuning loss since the previous point.

    In nats per token for `ce` and `distill`; the relative error for `hidden`; with auxiliary losses
    the weighted sum.
    """

    tokens: int = Field(description="Number of tokens trained on so far.")
    loss: float


class HeldOutPerplexity(FrozenModel):
    """Perplexity on sequences held out from the fine-tuning text."""

    tokens: int = Field(description="Number of predicted tokens.")
    dense: float
    before: float = Field(description="Perplexity of the compressed model before fine-tuning.")
    after: float = Field(description="Perplexity of the compressed model as stored afterwards.")

    @property
    def recovered(self) -> float | None:
        """Recovered fraction of the increase in log-perplexity; None without an increase."""
        increase = math.log(self.before / self.dense)
        return math.log(self.before / self.after) / increase if increase > 0.0 else None


class RecoveryReport(FrozenModel):
    """Recovery fine-tuning after the compression."""

    config: RecoveryConfig
    tokens: int = Field(description="Number of tokens trained on.")
    steps: int
    seconds: float = Field(description="Training time in seconds, over all attempts.")
    stopped_by: Literal["tokens", "time"]
    trained_parameters: int = Field(
        description="Number of trained parameters; those of adapters are merged and do not remain."
    )
    processes: int = Field(default=1, description="Number of processes that trained together.")
    losses: tuple[LossPoint, ...] = Field(
        description=f"Loss curve of at most {MAX_LOSS_POINTS} points."
    )
    held_out: HeldOutPerplexity


class SecondsComparison(FrozenModel):
    """Durations of both models in seconds; medians over interleaved repeats."""

    dense: float
    compressed: float
    dense_spread: float = Field(description="Interquartile range in seconds.")
    compressed_spread: float = Field(description="Interquartile range in seconds.")
    ratio: float = Field(description="Median over the repeats of compressed / dense.")


class BytesComparison(FrozenModel):
    """Sizes of both models in bytes."""

    dense: float
    compressed: float

    @property
    def ratio(self) -> float:
        """Size ratio, compressed / dense; 1 where both are zero."""
        return self.compressed / self.dense if self.dense else 1.0


class LoadReport(FrozenModel):
    """Speed and memory of both models under one load, measured alternately."""

    batch_size: int
    context_length: int = Field(description="Prompt length in tokens.")
    new_tokens: int = Field(description="Tokens decoded after the prompt, per sequence.")
    repeats: int
    prefill: PhaseComparison
    decode: PhaseComparison
    first_token: SecondsComparison = Field(
        description="Time from the prompts to the first token of each sequence."
    )
    peak_memory: BytesComparison = Field(
        description="Peak memory: weights, activations, KV cache and logits."
    )
    cache_per_token: BytesComparison = Field(description="KV cache size per token of a sequence.")


class ContinuationComparison(FrozenModel):
    """Greedy continuations of one prompt by both models."""

    prompt: str
    dense: str
    compressed: str


class EvaluationReport(FrozenModel):
    """Comparison of the dense and the compressed model."""

    config: EvaluationConfig | None = Field(default=None, description="Settings of the evaluation.")
    perplexity: tuple[PerplexityComparison, ...] = ()
    tasks: tuple[TaskComparison, ...] = ()
    speed: SpeedReport | None = None
    speed_grid: tuple[LoadReport, ...] = ()
    continuations: tuple[ContinuationComparison, ...] = ()

    @property
    def texts(self) -> list[str]:
        """Names of the scored texts."""
        return [comparison.text for comparison in self.perplexity]


class VerifiedReport(FrozenModel):
    """Agreement between files loaded in a clean process and the model in memory."""

    files: ExportFormat
    loaded_by: tuple[str, ...] = Field(
        description="Loaders of the files. checkpoint: transformers with the checkpoint's own "
        "code, if any. package: transformers with the intraslice package. llama.cpp: llama.cpp."
    )
    max_abs_difference: float = Field(
        description="Largest absolute difference of a log-probability, in nats."
    )
    tolerance: float = Field(description="Largest allowed difference, in nats.")


class CompressionReport(FrozenModel):
    """Report of one compression, from request to result."""

    schema_version: int = SCHEMA_VERSION
    engine_version: str
    model: str = Field(description="Reference of the dense model; paths by their end.")
    method: Method
    config: CompressionConfig
    geometry: ModelGeometry
    plan: ModelPlan
    params_before: int
    params_after: int
    compressible_before: int
    compressible_after: int
    bytes_before: int = Field(description="Size of the dense model's weight files in bytes.")
    bytes_after: int = Field(description="Size of the compressed model's weight files in bytes.")
    runtimes: tuple[str, ...] = Field(default=(), description="Runtimes that load the result.")
    layers: tuple[LayerReport, ...]
    resumed_layers: int = Field(
        default=0, description="Number of layers finished by an earlier, interrupted run."
    )
    warnings: tuple[str, ...] = ()
    base_licence: str | None = Field(
        default=None,
        description="Licence of the dense model: as named in its model card, or the file that "
        "contains it.",
    )
    base_fingerprint: str | None = Field(
        default=None,
        description="SHA-256 over the digests of the dense model's config and weight files.",
    )
    calibration_hash: str
    calibration_tokens: int
    begins_with_bos: bool = Field(
        default=False,
        description="True if every calibration sequence begins with the tokenizer's prefix.",
    )
    seconds: float = Field(
        description="Seconds of work on the run, over all attempts on the machine, without pauses."
    )
    peak_memory_bytes: int | None = None
    device: str | None = Field(default=None, description="Class of the device that compressed.")
    evaluation: EvaluationReport | None = None
    allocation: AllocationReport | None = None
    verified: tuple[VerifiedReport, ...] = Field(
        default=(), description="Files that were loaded and compared before publication."
    )
    recovery: RecoveryReport | None = None
    tournament: TournamentReport | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_stored(cls, data: Any) -> Any:
        """Translate names of version 1, and take the method from the settings.

        Earlier engines wrote `intraslice_plus` beside settings with `intraslice`.
        """
        config = data.get("config") if isinstance(data, dict) else None
        if not isinstance(config, dict):
            return data  # made by this engine, not read from a document
        method = config.get("method")
        if data.get("schema_version", 1) == 1:
            method = _METHODS_OF_VERSION_1.get(str(method), method)
        named = {"method": method, "config": {**config, "method": method}}
        return data | named | {"schema_version": SCHEMA_VERSION}

    @property
    def removed_fraction(self) -> float:
        """Removed fraction of the compressible parameters."""
        return 1.0 - self.compressible_after / self.compressible_before

    def with_evaluation(self, evaluation: EvaluationReport) -> Self:
        """Return the report with an evaluation, and warnings about optimistic measurements."""
        optimistic = in_domain_only(self.config.seen_sources, evaluation.texts)
        warnings = (*self.warnings, IN_DOMAIN_ONLY_WARNING) if optimistic else self.warnings
        warnings += tuple(
            overlap_warning(text.text, text.calibration_overlap)
            for text in evaluation.perplexity
            if text.calibration_overlap is not None and text.calibration_overlap > TOLERATED_OVERLAP
        )
        return self.model_copy(update={"evaluation": evaluation, "warnings": warnings})
