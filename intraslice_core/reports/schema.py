"""What a compression leaves behind in writing: frozen, torch-free, serialisable.

CompressionReport
├── config, geometry, plan          what was asked, what there was, what was kept
├── allocation: AllocationReport    who chose the plan, and what it was predicted to cost
│   ├── layers: LayerPrediction
│   └── trials: TrialReport         predicted against measured
├── layers: LayerReport             what each layer's solve had to say
│   └── attention, mlp: ModuleReport
│       └── spectra: SpectrumReport, one a dimension that was cut
├── recovery: RecoveryReport        what training won back
│   └── held_out: HeldOutPerplexity, losses: LossPoint
└── evaluation: EvaluationReport    dense against compressed
    ├── perplexity: PerplexityComparison, one a text
    ├── tasks: TaskComparison, one a metric
    ├── speed: SpeedReport
    │   └── whole, attention, mlp, layers: PhaseComparison a phase
    ├── speed_grid: LoadReport, one a load
    └── continuations: ContinuationComparison, one a prompt
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
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, Module
from intraslice_core.text_sources import (
    IN_DOMAIN_ONLY_WARNING,
    TOLERATED_OVERLAP,
    in_domain_only,
    overlap_warning,
)

SCHEMA_VERSION = 2
"""Version 1 wrote `intraslice_plus` as "intraslice" and `intraslice` as "paper"."""
_METHODS_OF_VERSION_1 = {"intraslice": "intraslice_plus", "paper": "intraslice"}
REPORT_FILE = "intraslice_report.json"
"""Its name within a checkpoint."""
MAX_LOSS_POINTS = 50


LossWeighting = Literal["fisher", "residual_norm"]
"""By the gradient's second moment, or without gradients by 1 / E‖x‖² of the residual stream."""


class SpectrumReport(FrozenModel):
    """What a dimension was cut by: shares of its sum by rank, the most valuable first."""

    dimension: Literal["value dims", "rotary pairs", "MLP neurons"]
    measure: Literal["eigenvalue", "loss", "score"] = Field(
        description="of the weighted value moment; predicted loss of being the next to go; or what "
        "the method ranks by where it predicts nothing"
    )
    size: int = Field(description="ranks there are")
    kept: int = Field(description="ranks before the cut")
    kept_share: float = Field(description="of the sum")
    ranks: tuple[int, ...] = Field(description="from 0; thinned to some 40")
    values: tuple[float, ...] = Field(description="of these ranks, as parts of the sum")


class ModuleReport(FrozenModel):
    """What the solve of one module found."""

    module: Module
    explained_energy: float | None = Field(
        default=None, description="part of the inner activations' energy that was kept, in [0, 1]"
    )
    relative_error: float | None = Field(
        default=None, description="‖output - target‖² / ‖target‖² on the calibration tokens"
    )
    damping: dict[str, float] = Field(
        default_factory=dict, description="λ by factorisation, as used after the ladder"
    )
    spectra: tuple[SpectrumReport, ...] = ()


class LayerReport(FrozenModel):
    """What one layer kept, and at what price."""

    layer: int = Field(ge=0)
    plan: LayerPlan
    attention: ModuleReport
    mlp: ModuleReport
    seconds: float = Field(ge=0.0)


class LayerPrediction(FrozenModel):
    """Loss increase that the allocator predicted for one layer's modules."""

    layer: int = Field(ge=0)
    attention: float
    mlp: float


class TrialReport(FrozenModel):
    """A module that was cut for trial, all others left alone."""

    layer: int = Field(ge=0)
    module: Module
    cut: float = Field(description="fraction of the module's dimensions")
    predicted: float = Field(description="loss increase by the Fisher matrices alone, in nats")
    measured: float = Field(description="loss increase on calibration sequences held out for it")


class CandidateReport(FrozenModel):
    """An allocation by the curves, and how the model did with it."""

    heads: bool = Field(description="whether heads were offered, and not only dimensions")
    attention_price: float = Field(description="what attention's curves were multiplied by")
    calibration_loss: float = Field(description="in nats a token, on held-out calibration text")


class AllocationReport(FrozenModel):
    """Who decided how much is removed where."""

    requested: Allocation
    allocator: Allocator = Field(description="whose shapes the plan has")
    fell_back: bool = Field(
        default=False, description="the allocator asked for did no better than equal layers"
    )
    fallback_reason: str | None = None
    weighting: LossWeighting | None = None
    calibration_loss: float | None = Field(
        default=None, description="with the shapes of the allocator that was asked for"
    )
    uniform_calibration_loss: float | None = Field(
        default=None, description="with equal layers of the same size"
    )
    unconstrained_calibration_loss: float | None = Field(
        default=None,
        description="with shapes as free as target research has them, at the same size: the "
        "difference is what the target costs",
    )
    predicted_loss: float | None = Field(default=None, description="sum over all modules")
    layers: tuple[LayerPrediction, ...] = ()
    candidates: tuple[CandidateReport, ...] = Field(
        default=(), description="the different allocations that were tried, the best first"
    )
    trials: tuple[TrialReport, ...] = ()
    rank_correlation: float | None = Field(
        default=None,
        description="Spearman's, of trials with what curves predict that were scaled by the other "
        "trials of the same module; from 12 trials on",
    )


class PerplexityComparison(FrozenModel):
    """One text, scored by both models."""

    text: str
    context_length: int
    tokens: int = Field(description="predicted tokens")
    dense: float
    compressed: float
    calibration_overlap: float | None = Field(
        default=None, description="part of the text's runs of 13 tokens that calibration has seen"
    )

    @property
    def ratio(self) -> float:
        """Compressed over dense: 1 means nothing was lost."""
        return self.compressed / self.dense


class TaskComparison(FrozenModel):
    """One metric of one task, of both models on the same examples."""

    task: str
    metric: str
    higher_is_better: bool
    examples: int
    shots: int = Field(description="solved examples that are shown before each question")
    dense: float
    compressed: float
    dense_stderr: float | None = None
    compressed_stderr: float | None = None

    @property
    def ratio(self) -> float:
        """Compressed over dense, or dense over compressed where lower is better.

        1 means nothing was lost, as where there was nothing to lose.
        """
        best, found = self.dense, self.compressed
        if not self.higher_is_better:
            best, found = found, best
        if best == 0.0:
            return 1.0 if found == 0.0 else math.inf
        return found / best


class PhaseComparison(FrozenModel):
    """Tokens/s of both models in one phase, medians over interleaved repeats."""

    dense: float
    compressed: float
    dense_spread: float = Field(description="interquartile range of tokens/s")
    compressed_spread: float
    ratio: float = Field(description="median over repeats of compressed / dense")


class PartSpeed(FrozenModel):
    """Prefill and decode of one part of the model."""

    prefill: PhaseComparison
    decode: PhaseComparison


class SpeedReport(FrozenModel):
    """How fast both models are, whole and by part."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    whole: PartSpeed
    attention: PartSpeed | None = None
    mlp: PartSpeed | None = None
    layers: PartSpeed | None = Field(
        default=None, description="decoder layers, without embedding and output head"
    )


class LossPoint(FrozenModel):
    """The mean training loss of the tokens since the point before, in nats a token."""

    tokens: int = Field(description="trained on by then")
    loss: float


class HeldOutPerplexity(FrozenModel):
    """On sequences of the training's text that were not trained on."""

    tokens: int = Field(description="predicted tokens")
    dense: float
    before: float = Field(description="as compressed")
    after: float = Field(description="as stored after training")

    @property
    def recovered(self) -> float | None:
        """The part of the damage that was won back, in log perplexity; None without damage."""
        damage = math.log(self.before / self.dense)
        return math.log(self.before / self.after) / damage if damage > 0.0 else None


class RecoveryReport(FrozenModel):
    """Training after the compression."""

    config: RecoveryConfig
    tokens: int = Field(description="trained on")
    steps: int
    seconds: float = Field(description="of training, in all attempts")
    stopped_by: Literal["tokens", "time"]
    trained_parameters: int = Field(description="of the adapters; none is left in the result")
    losses: tuple[LossPoint, ...] = Field(description=f"at most {MAX_LOSS_POINTS}")
    held_out: HeldOutPerplexity


class SecondsComparison(FrozenModel):
    """Seconds that both models take, medians over interleaved repeats."""

    dense: float
    compressed: float
    dense_spread: float = Field(description="interquartile range of the seconds")
    compressed_spread: float
    ratio: float = Field(description="median over repeats of compressed / dense")


class BytesComparison(FrozenModel):
    """Bytes that both models take."""

    dense: float
    compressed: float

    @property
    def ratio(self) -> float:
        """Compressed over dense; 1 where neither takes any."""
        return self.compressed / self.dense if self.dense else 1.0


class LoadReport(FrozenModel):
    """Both models under one load, in turns."""

    batch_size: int
    context_length: int = Field(description="tokens of a prompt")
    new_tokens: int = Field(description="decoded behind it, a sequence")
    repeats: int
    prefill: PhaseComparison
    decode: PhaseComparison
    first_token: SecondsComparison = Field(
        description="from the prompts to the first token of each sequence"
    )
    peak_memory: BytesComparison = Field(
        description="the weights and the most that a run took besides"
    )
    cache_per_token: BytesComparison = Field(
        description="keys and values, for each token of a sequence"
    )


class ContinuationComparison(FrozenModel):
    """How both models go on with a prompt, greedily."""

    prompt: str
    dense: str
    compressed: str


class EvaluationReport(FrozenModel):
    """Dense against compressed."""

    config: EvaluationConfig | None = Field(default=None, description="what was asked for")
    perplexity: tuple[PerplexityComparison, ...] = ()
    tasks: tuple[TaskComparison, ...] = ()
    speed: SpeedReport | None = None
    speed_grid: tuple[LoadReport, ...] = ()
    continuations: tuple[ContinuationComparison, ...] = ()

    @property
    def texts(self) -> list[str]:
        """Those that were scored."""
        return [one.text for one in self.perplexity]


class VerifiedReport(FrozenModel):
    """How closely files, loaded by somebody else, agreed with the model in memory."""

    files: ExportFormat
    loaded_by: tuple[str, ...] = Field(
        description="checkpoint: transformers with the checkpoint's own code or none; package: "
        "transformers with ours; llama.cpp"
    )
    max_abs_difference: float = Field(description="of a log-probability, in nats")
    tolerance: float


def _renamed_method(settings: dict[str, Any]) -> dict[str, Any]:
    method = settings.get("method")
    return {**settings, "method": _METHODS_OF_VERSION_1.get(str(method), method)}


class CompressionReport(FrozenModel):
    """One compression, from request to result."""

    schema_version: int = SCHEMA_VERSION
    engine_version: str
    model: str = Field(description="reference of the dense model, as given")
    method: Method
    config: CompressionConfig
    geometry: ModelGeometry
    plan: ModelPlan
    params_before: int
    params_after: int
    compressible_before: int
    compressible_after: int
    bytes_before: int = Field(description="weight files of the dense model")
    bytes_after: int = Field(description="weight files of the compressed model")
    layers: tuple[LayerReport, ...]
    resumed_layers: int = Field(default=0, description="finished by an earlier, interrupted run")
    warnings: tuple[str, ...] = ()
    base_licence: str | None = Field(
        default=None, description="of the dense model: as its card names it, or the file it is in"
    )
    base_fingerprint: str | None = Field(
        default=None,
        description="SHA-256 over the digests of the dense model's config and files of weights",
    )
    calibration_hash: str
    calibration_tokens: int
    seconds: float
    peak_memory_bytes: int | None = None
    device: str | None = Field(default=None, description="class of the machine that did it")
    evaluation: EvaluationReport | None = None
    allocation: AllocationReport | None = None
    verified: tuple[VerifiedReport, ...] = Field(
        default=(), description="files that were loaded and compared before publication"
    )
    recovery: RecoveryReport | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, data: Any) -> Any:
        """Translate the method names of reports that were written before the methods' renaming."""
        if not isinstance(data, dict) or data.get("schema_version", 1) != 1:
            return data
        config = data.get("config")
        renamed = _renamed_method(config) if isinstance(config, dict) else config
        return _renamed_method(data) | {"config": renamed, "schema_version": SCHEMA_VERSION}

    @property
    def removed_fraction(self) -> float:
        """Fraction of the compressible parameters that is gone."""
        return 1.0 - self.compressible_after / self.compressible_before

    def with_evaluation(self, evaluation: EvaluationReport) -> Self:
        """Return the report with an evaluation and with warnings about optimistic results."""
        in_domain = in_domain_only(
            self.config.seen_sources, [one.text for one in evaluation.perplexity]
        )
        warnings = (*self.warnings, IN_DOMAIN_ONLY_WARNING) if in_domain else self.warnings
        warnings += tuple(
            overlap_warning(one.text, one.calibration_overlap)
            for one in evaluation.perplexity
            if one.calibration_overlap is not None and one.calibration_overlap > TOLERATED_OVERLAP
        )
        return self.model_copy(update={"evaluation": evaluation, "warnings": warnings})
