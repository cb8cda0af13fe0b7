"""Dense against compressed: quality first, one model in memory at a time, then speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from intraslice_core import modeling
from intraslice_core.config import EvaluationConfig, GateConfig
from intraslice_core.errors import QualityGateError
from intraslice_core.evaluation.perplexity import (
    PerplexityResult,
    evaluation_tokens,
    perplexity,
    written_tokens,
)
from intraslice_core.evaluation.speed import compare_speed
from intraslice_core.hardware import resolve_device, resolve_dtype
from intraslice_core.progress import (
    CancellationCheck,
    ProgressEvent,
    ProgressListener,
    Stage,
    ignore_progress,
    never_cancelled,
)
from intraslice_core.reports.schema import EvaluationReport, PerplexityComparison, SpeedReport
from intraslice_core.text_sources import WRITTEN

_TOKENS_AT_ONCE = 4096
_PERPLEXITY_SHARE = 0.9
"""Part of the evaluation's progress that perplexity takes when speed is measured too."""

_BENCHMARK = {"batch_size": 1, "prompt_tokens": 256, "new_tokens": 32, "repeats": 3}


@dataclass(kw_only=True)
class DenseScores:
    """What a dense model has written and scored, for the next comparison with the same settings.

    Whoever keeps it compares with one dense model only.
    """

    key: str = ""
    texts: dict[str, Tensor] = field(default_factory=dict)
    results: dict[str, PerplexityResult] = field(default_factory=dict)

    def knows(self, key: str) -> bool:
        """Whether all of it was measured with these settings; else it is empty afterwards."""
        if self.key != key:
            self.key, self.texts, self.results = key, {}, {}
        return bool(self.results)


def evaluate_pair(  # noqa: PLR0913  # one call is the whole comparison
    dense_dir: Path,
    compressed_dir: Path,
    config: EvaluationConfig,
    *,
    dtype: str = "auto",
    device: str = "auto",
    known: DenseScores | None = None,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> EvaluationReport:
    """Measure both models on the same tokens and the same machine.

    The dense model writes the texts that are a model's own, once, and both are scored on them.
    Progress fractions are of the evaluation, in [0, 1]. What an earlier comparison found out about
    the dense model is read from `known`, which keeps it for the next.

    Raises:
        QualityGateError: if the compressed model is worse than the gate allows.
        CalibrationSourceError: if a text cannot be read, or only the dense model could write it.
        CompressionCancelledError: if asked to stop.
    """
    share = _PERPLEXITY_SHARE if config.benchmark else 1.0
    dense = known or DenseScores()
    if not dense.knows(f"{config.perplexity} {config.max_tokens} {config.context_length} {dtype}"):
        report = _announcer(on_progress, 0, share / 2)
        texts = _load_texts(
            dense_dir, [one for one in config.perplexity if one not in WRITTEN], config
        )
        model = load_model(dense_dir, dtype=dtype, device=device)
        dense.texts = texts | _write_texts(model, dense_dir, config, report, should_cancel)
        dense.results = _score(model, dense.texts, config, report, should_cancel)
        del model
    report = _announcer(on_progress, 1, share / 2)
    model = load_model(compressed_dir, dtype=dtype, device=device)
    results = _score(model, dense.texts, config, report, should_cancel)
    del model
    comparisons = tuple(
        PerplexityComparison(
            text=source,
            context_length=config.context_length,
            tokens=results[source].tokens_scored,
            dense=dense.results[source].perplexity,
            compressed=results[source].perplexity,
        )
        for source in dict.fromkeys(config.perplexity)
    )
    if config.gate is not None:
        check_gate(comparisons, config.gate)
    speed = None
    if config.benchmark:
        speed = _compare_speed(dense_dir, compressed_dir, dtype, device, should_cancel)
    on_progress(ProgressEvent(stage=Stage.EVALUATE, message="evaluated", fraction=1.0))
    return EvaluationReport(perplexity=comparisons, speed=speed)


def evaluate_one(
    directory: Path,
    config: EvaluationConfig,
    *,
    dtype: str = "auto",
    device: str = "auto",
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> dict[str, PerplexityResult]:
    """One model's perplexity, by text.

    Raises:
        CalibrationSourceError: if a text cannot be read, or only the dense model could write it.
        CompressionCancelledError: if asked to stop.
    """
    texts = _load_texts(directory, config.perplexity, config)
    model = load_model(directory, dtype=dtype, device=device)

    def report(source: str, fraction: float) -> None:
        message = f"perplexity on {source}"
        on_progress(ProgressEvent(stage=Stage.EVALUATE, message=message, fraction=fraction))

    return _score(model, texts, config, report, should_cancel)


def check_gate(comparisons: tuple[PerplexityComparison, ...], gate: GateConfig) -> None:
    """Refuse a result that is worse than allowed on any text.

    Raises:
        QualityGateError: naming the text, the ratio and the limit.
    """
    for comparison in comparisons:
        # Written so that NaN fails too.
        if not comparison.ratio <= gate.max_perplexity_ratio:
            raise QualityGateError(
                f"perplexity on {comparison.text} grew {comparison.ratio:.3f} times "
                f"({comparison.dense:.2f} to {comparison.compressed:.2f}), "
                f"the gate allows {gate.max_perplexity_ratio:.3f}",
                hint="ask for a lower ratio or more calibration text",
            )


def load_model(directory: Path, *, dtype: str, device: str) -> PreTrainedModel:
    """A dense or a compressed checkpoint, by our own registered classes, ready to run."""
    modeling.register()
    place = resolve_device(device)
    settings = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=resolve_dtype(dtype, place, settings.dtype),
        local_files_only=True,
        trust_remote_code=False,
    )
    model.to(place)  # type: ignore[arg-type]
    model.train(False)
    return model


def _load_texts(
    directory: Path, sources: Iterable[str], config: EvaluationConfig
) -> dict[str, Tensor]:
    """Held-out tokens of every text, by its name."""
    tokenizer = _tokenizer(directory)
    return {source: evaluation_tokens(source, tokenizer, config.max_tokens) for source in sources}


def _write_texts(
    dense: PreTrainedModel,
    directory: Path,
    config: EvaluationConfig,
    report: Callable[[str, float], None],
    should_cancel: CancellationCheck,
) -> dict[str, Tensor]:
    """Tokens of the texts that the dense model writes, by their names."""
    texts = {}
    for source in dict.fromkeys(config.perplexity):
        if source in WRITTEN:
            report(f"{source}, which it writes first", 0.0)
            texts[source] = written_tokens(
                source,
                dense,
                _tokenizer(directory),
                max_tokens=config.max_tokens,
                context_length=config.context_length,
                should_cancel=should_cancel,
            )
    return texts


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _score(
    model: PreTrainedModel,
    texts: dict[str, Tensor],
    config: EvaluationConfig,
    report: Callable[[str, float], None],
    should_cancel: CancellationCheck,
) -> dict[str, PerplexityResult]:
    """The model's perplexity on every text."""
    results = {}
    for index, (source, tokens) in enumerate(texts.items()):

        def on_part(fraction: float, index: int = index, source: str = source) -> None:
            report(source, (index + fraction) / len(texts))

        results[source] = perplexity(
            model,
            tokens,
            context_length=config.context_length,
            batch_size=max(1, _TOKENS_AT_ONCE // config.context_length),
            on_progress=on_part,
            should_cancel=should_cancel,
        )
    return results


def _announcer(
    on_progress: ProgressListener, index: int, share: float
) -> Callable[[str, float], None]:
    """Progress of the dense (0) or the compressed (1) model's scoring."""
    name = ("dense", "compressed")[index]

    def report(source: str, fraction: float) -> None:
        on_progress(
            ProgressEvent(
                stage=Stage.EVALUATE,
                message=f"perplexity of the {name} model on {source}",
                fraction=share * (index + fraction),
            )
        )

    return report


def _compare_speed(
    dense_dir: Path, compressed_dir: Path, dtype: str, device: str, should_cancel: CancellationCheck
) -> SpeedReport:
    """Both models in memory at once: only so can they take turns."""
    dense, compressed = (
        load_model(directory, dtype=dtype, device=device)
        for directory in (dense_dir, compressed_dir)
    )
    return compare_speed(dense, compressed, **_BENCHMARK, should_cancel=should_cancel)
