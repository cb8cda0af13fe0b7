"""Scores of one model on texts and in tasks, and the cache of the dense model's scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from intraslice_core.calibration import text_prefix
from intraslice_core.config import EvaluationConfig
from intraslice_core.device import HostMemory, advising_bfloat16
from intraslice_core.evaluation.continuations import continuations
from intraslice_core.evaluation.divergence import (
    DenseOutputs,
    Divergence,
    DivergenceMeter,
    HiddenStateRecorder,
)
from intraslice_core.evaluation.forward_meter import metered
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.perplexity import (
    BlockObserver,
    OutputHead,
    PerplexityResult,
    perplexity,
    written_tokens,
)
from intraslice_core.evaluation.progress import Report, scoring_shares
from intraslice_core.evaluation.tasks import OpenedTasks, TaskScore, score_tasks
from intraslice_core.evaluation.texts import held_out_texts, require_known_texts
from intraslice_core.progress import CancellationCheck
from intraslice_core.text_sources import WRITTEN
from intraslice_core.tokenizer import embedding_rows, load_tokenizer

EVALUATION_TOKENS = 4096
"""Tokens per forward pass; at least one window."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """Scores of one model: perplexities by text, tasks, and continuations of the prompts."""

    perplexity: dict[str, PerplexityResult]
    tasks: tuple[TaskScore, ...]
    continuations: tuple[str, ...] = ()


@dataclass(kw_only=True)
class DenseScores:
    """Cache of one dense model's texts, scores and outputs, for comparisons with the same settings.

    With it the dense model of several comparisons is loaded and scored once.
    """

    key: str = ""
    texts: dict[str, Tensor] = field(default_factory=dict)
    """Tokens of each text, without prefix."""
    prefix: tuple[int, ...] = ()
    """Tokens that every scored window begins with (`calibration.text_prefix`)."""
    scores: ModelScores | None = None
    outputs: DenseOutputs | None = None

    def get(self, key: str) -> ModelScores | None:
        """Return the scores measured with these settings; clear the cache if there are none."""
        if self.key != key:
            self.key, self.texts, self.scores, self.outputs = key, {}, None, None
        return self.scores


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scoring of models with the same settings."""

    config: EvaluationConfig
    tasks: OpenedTasks | None
    dtype: str
    device: str
    should_cancel: CancellationCheck

    def load(self, directory: Path) -> PreTrainedModel:
        """Load a checkpoint for inference."""
        return load_model(directory, dtype=self.dtype, device=self.device)

    def score_dense(
        self, directory: Path, cache: DenseScores, memory: HostMemory, report: Report
    ) -> ModelScores:
        """Load and write the texts, score the dense model on them, and fill the cache.

        Args:
            directory: checkpoint of the dense model.
            cache: filled with texts, scores and outputs.
            memory: storage of the outputs.
            report: called with the progress.
        """
        sources = [source for source in self.config.perplexity if source not in WRITTEN]
        texts = load_texts(directory, sources, self.config, report)
        model = self.load(directory)
        rows = embedding_rows(model)
        tokenizer = load_tokenizer(directory)
        require_known_texts(tokenizer, rows, texts, self.config.prompts)
        cache.prefix = text_prefix(tokenizer)
        cache.texts = texts | self._write_texts(model, directory, report)
        recorders = {
            source: HiddenStateRecorder(memory, len(tokens))
            for source, tokens in cache.texts.items()
        }
        cache.scores = self._score(model, directory, cache, recorders, report)
        if recorders:
            cache.outputs = DenseOutputs(
                head=OutputHead.of(model).moved(memory.copy),
                hidden={source: recorder.states for source, recorder in recorders.items()},
            )
        return cache.scores

    def score_compressed(
        self, directory: Path, cache: DenseScores, report: Report
    ) -> tuple[ModelScores, dict[str, Divergence]]:
        """Score the compressed model on the dense model's texts, and compare their predictions.

        The divergences are empty if the models have vocabularies of different sizes.
        """
        model = self.load(directory)
        meters: dict[str, DivergenceMeter] = {}
        outputs = cache.outputs
        if outputs is not None and outputs.head.vocabulary == OutputHead.of(model).vocabulary:
            head = outputs.head.moved(lambda tensor: tensor.to(model.device))
            meters = {
                source: DivergenceMeter(hidden, head) for source, hidden in outputs.hidden.items()
            }
        scores = self._score(model, directory, cache, meters, report)
        with advising_bfloat16(model.dtype, model.device):
            return scores, {source: meter.divergence() for source, meter in meters.items()}

    def _score(
        self,
        model: PreTrainedModel,
        directory: Path,
        cache: DenseScores,
        observers: Mapping[str, BlockObserver],
        report: Report,
    ) -> ModelScores:
        with advising_bfloat16(model.dtype, model.device):
            return ModelScores(
                perplexity=self.score_texts(model, cache.texts, cache.prefix, observers, report),
                tasks=self.score_tasks(model, directory, report),
                continuations=continuations(
                    model,
                    load_tokenizer(directory),
                    self.config.prompts,
                    should_cancel=self.should_cancel,
                ),
            )

    def _write_texts(
        self, dense: PreTrainedModel, directory: Path, report: Report
    ) -> dict[str, Tensor]:
        """Let the dense model write its texts; return their tokens by source."""
        texts = {}
        for source in dict.fromkeys(self.config.perplexity):
            if source in WRITTEN:

                def on_part(fraction: float, source: str = source) -> None:
                    report(f"writing {source}, {fraction:.0%}", 0.0)

                on_part(0.0)
                with metered(dense, self.config.max_tokens, on_part):
                    texts[source] = written_tokens(
                        source,
                        dense,
                        load_tokenizer(directory),
                        max_tokens=self.config.max_tokens,
                        context_length=self.config.context_length,
                        should_cancel=self.should_cancel,
                    )
        return texts

    def score_texts(
        self,
        model: PreTrainedModel,
        texts: dict[str, Tensor],
        prefix: tuple[int, ...],
        observers: Mapping[str, BlockObserver],
        report: Report,
    ) -> dict[str, PerplexityResult]:
        """Compute the model's perplexity on every text, in windows that begin with `prefix`.

        Args:
            model: the model to score.
            texts: tokens by text, without prefix.
            prefix: first tokens of every window.
            observers: observers of the scored positions by text; texts without one are allowed.
            report: called with the progress.
        """
        results, share = {}, scoring_shares(self.config, self.tasks).texts
        for index, (source, tokens) in enumerate(texts.items()):

            def on_part(fraction: float, index: int = index, source: str = source) -> None:
                report(f"perplexity on {source}", share * (index + fraction) / len(texts))

            on_part(0.0)
            with metered(model, len(tokens), on_part):
                results[source] = perplexity(
                    model,
                    tokens,
                    context_length=self.config.context_length,
                    batch_size=max(1, EVALUATION_TOKENS // self.config.context_length),
                    prefix=prefix,
                    observer=observers.get(source),
                    should_cancel=self.should_cancel,
                )
        return results

    def score_tasks(
        self, model: PreTrainedModel, directory: Path, report: Report
    ) -> tuple[TaskScore, ...]:
        """Compute the model's scores in all tasks; their progress is an estimate."""
        if self.tasks is None:
            return ()
        shares = scoring_shares(self.config, self.tasks)

        def on_part(fraction: float) -> None:
            report("tasks", shares.texts + shares.tasks * fraction)

        on_part(0.0)
        with metered(model, shares.task_tokens, on_part):
            return score_tasks(
                model, load_tokenizer(directory), self.tasks, should_cancel=self.should_cancel
            )


def load_texts(
    directory: Path, sources: Iterable[str], config: EvaluationConfig, report: Report
) -> dict[str, Tensor]:
    """Return the held-out tokens of every text by its source; report skipped records."""
    texts, warnings = held_out_texts(sources, config, load_tokenizer(directory))
    for warning in warnings:
        report(f"warning: {warning}", 0.0)
    return texts
