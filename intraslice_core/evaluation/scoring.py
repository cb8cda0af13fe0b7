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
    OutputHead,
    PerplexityResult,
    perplexity,
    written_tokens,
)
from intraslice_core.evaluation.progress import Report, scoring_shares
from intraslice_core.evaluation.saved_scores import Observer, Role, SavedScores
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
    saved: SavedScores | None = None
    """Scores of an interrupted evaluation, read and extended; None saves nothing."""

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
        cache.scores = self._score("dense", model, directory, cache, recorders, report)
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
        scores = self._score("compressed", model, directory, cache, meters, report)
        with advising_bfloat16(model.dtype, model.device):
            return scores, {source: meter.divergence() for source, meter in meters.items()}

    def _score(
        self,
        role: Role,
        model: PreTrainedModel,
        directory: Path,
        cache: DenseScores,
        observers: Mapping[str, Observer],
        report: Report,
    ) -> ModelScores:
        texts = (cache.texts, cache.prefix)
        with advising_bfloat16(model.dtype, model.device):
            return ModelScores(
                perplexity=self.score_texts(model, *texts, observers, report, role),
                tasks=self.score_tasks(model, directory, report, role),
                continuations=self._continuations(model, directory, role),
            )

    def _continuations(
        self, model: PreTrainedModel, directory: Path, role: Role
    ) -> tuple[str, ...]:
        """Return the model's continuations of all prompts."""
        texts = None if self.saved is None else self.saved.continuations(role)
        if texts is None:
            tokenizer = load_tokenizer(directory)
            texts = continuations(
                model, tokenizer, self.config.prompts, should_cancel=self.should_cancel
            )
            if self.saved is not None:
                self.saved.save_continuations(role, texts)
        return texts

    def _write_texts(
        self, dense: PreTrainedModel, directory: Path, report: Report
    ) -> dict[str, Tensor]:
        """Let the dense model write its texts; return their tokens by source."""
        texts = {}
        for source in dict.fromkeys(self.config.perplexity):
            if source not in WRITTEN:
                continue
            tokens = None if self.saved is None else self.saved.written(source)
            if tokens is None:
                tokens = self._write_text(source, dense, directory, report)
                if self.saved is not None:
                    self.saved.save_written(source, tokens)
            texts[source] = tokens
        return texts

    def _write_text(
        self, source: str, dense: PreTrainedModel, directory: Path, report: Report
    ) -> Tensor:
        """Let the dense model write a text; return its tokens, (n,), int64."""

        def on_part(fraction: float) -> None:
            report(f"writing {source}, {fraction:.0%}", 0.0)

        on_part(0.0)
        with metered(dense, self.config.max_tokens, on_part):
            return written_tokens(
                source,
                dense,
                load_tokenizer(directory),
                max_tokens=self.config.max_tokens,
                context_length=self.config.context_length,
                should_cancel=self.should_cancel,
            )

    def score_texts(
        self,
        model: PreTrainedModel,
        texts: dict[str, Tensor],
        prefix: tuple[int, ...],
        observers: Mapping[str, Observer],
        report: Report,
        role: Role | None = None,
    ) -> dict[str, PerplexityResult]:
        """Compute the model's perplexity on every text, in windows that begin with `prefix`.

        Args:
            model: the model to score.
            texts: tokens by text, without prefix.
            prefix: first tokens of every window.
            observers: observers of the scored positions by text; texts without one are allowed.
            report: called with the progress.
            role: model whose scores are saved; None saves none.
        """
        results, share = {}, scoring_shares(self.config, self.tasks).texts
        for index, (source, tokens) in enumerate(texts.items()):

            def on_part(fraction: float, index: int = index, source: str = source) -> None:
                report(f"perplexity on {source}", share * (index + fraction) / len(texts))

            on_part(0.0)
            observer = observers.get(source)
            result = self.saved.text(role, index, tokens, observer) if role and self.saved else None
            if result is not None:
                results[source] = result
                continue
            with metered(model, len(tokens), on_part):
                results[source] = perplexity(
                    model,
                    tokens,
                    context_length=self.config.context_length,
                    batch_size=max(1, EVALUATION_TOKENS // self.config.context_length),
                    prefix=prefix,
                    observer=observer,
                    should_cancel=self.should_cancel,
                )
            if role and self.saved:
                self.saved.save_text(role, index, tokens, observer, results[source])
        return results

    def score_tasks(
        self,
        model: PreTrainedModel,
        directory: Path,
        report: Report,
        role: Role | None = None,
    ) -> tuple[TaskScore, ...]:
        """Compute the model's scores in all tasks; their progress is an estimate."""
        if self.tasks is None:
            return ()
        scores = self.saved.tasks(role) if role and self.saved else None
        if scores is not None:
            return scores
        shares = scoring_shares(self.config, self.tasks)

        def on_part(fraction: float) -> None:
            report("tasks", shares.texts + shares.tasks * fraction)

        on_part(0.0)
        with metered(model, shares.task_tokens, on_part):
            scores = score_tasks(
                model, load_tokenizer(directory), self.tasks, should_cancel=self.should_cancel
            )
        if role and self.saved:
            self.saved.save_tasks(role, scores)
        return scores


def load_texts(
    directory: Path, sources: Iterable[str], config: EvaluationConfig, report: Report
) -> dict[str, Tensor]:
    """Return the held-out tokens of every text by its source; report skipped records."""
    texts, warnings = held_out_texts(sources, config, load_tokenizer(directory))
    for warning in warnings:
        report(f"warning: {warning}", 0.0)
    return texts
