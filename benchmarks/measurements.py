"""Compressions with their scores, saved so that an interrupted measurement resumes.

A measurement is named by a digest of everything that it depends on: the engine's source files, the
model, the settings, the texts, and the compute type. It is taken once for each name; afterwards its
file answers. The directory of an unfinished compression lies beside the files, and the next run
resumes from it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

import intraslice_core
from intraslice_core.config import (
    Allocation,
    CompressionConfig,
    EvaluationConfig,
    FrozenModel,
    MaskTrainingConfig,
    Method,
    MethodChoice,
)
from intraslice_core.content_key import calibration_facts, content_key, fingerprint
from intraslice_core.device import resolve_device, resolve_dtype
from intraslice_core.evaluation.comparison import Materials, evaluate_pair
from intraslice_core.evaluation.scoring import DenseScores
from intraslice_core.evaluation.tasks import OpenedTasks
from intraslice_core.files import atomic_file, combined_sha256, file_sha256
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import ModelGeometry, ModelPlan
from intraslice_core.progress import ProgressEvent
from intraslice_core.reports.schema import (
    REPORT_FILE,
    AllocationReport,
    CompressionReport,
    PerplexityComparison,
    TaskComparison,
)
from intraslice_core.reports.tournament import TournamentReport
from intraslice_core.resume_state import ResumeState
from intraslice_core.statistics_cache import StatisticsCache

ENGINE = Path(intraslice_core.__file__).parent
SELF_TEXT = "self"
"""Addition to a method's name for the share of self-written text that IntraSlice+ has."""
MASKS = "masks="
"""Addition to a method's name for masks trained on the number of tokens that follows."""


@dataclass(frozen=True, kw_only=True)
class MethodVariant:
    """Method and its additions, written `NAME[:ALLOCATION][+self][+masks=TOKENS]`."""

    method: str
    allocation: str = "auto"
    self_text: bool = False
    """Add the share of self-written text that IntraSlice+ has by default."""
    mask_training: MaskTrainingConfig | None = None
    """Training of the masks by which the method chooses; None for its choice without training."""

    @classmethod
    def parse(cls, text: str) -> MethodVariant:
        """Read a variant.

        Raises:
            ValueError: if the method, the allocation or the addition is unknown, or if the masks'
                tokens are out of range.
        """
        name, *additions = text.split("+")
        method, colon, allocation = name.partition(":")
        if method not in get_args(MethodChoice):
            raise ValueError(f"unknown method {method!r}: choose from {get_args(MethodChoice)}")
        if colon and allocation not in get_args(Allocation):
            raise ValueError(f"unknown allocation {allocation!r}: {get_args(Allocation)}")
        mask_training: MaskTrainingConfig | None = None
        for addition in additions:
            count = addition.removeprefix(MASKS)
            if count != addition and count.isdecimal():
                mask_training = MaskTrainingConfig(max_tokens=int(count))
            elif addition != SELF_TEXT:
                raise ValueError(
                    f"unknown addition {addition!r}: +{SELF_TEXT} or +{MASKS}TOKENS is possible"
                )
        return cls(
            method=method,
            allocation=allocation or "auto",
            self_text=SELF_TEXT in additions,
            mask_training=mask_training,
        )

    def config(self, ratio: float, calibration: Mapping[str, object]) -> CompressionConfig:
        """Return the settings of a compression.

        Args:
            ratio: fraction of the compressible parameters to remove.
            calibration: fields of `CalibrationConfig`.
        """
        if self.self_text:
            ours = CompressionConfig.model_validate({"calibration": calibration})
            calibration = {**calibration, "self_share": ours.resolved_calibration.self_share}
        return CompressionConfig.model_validate(
            {
                "ratio": ratio,
                "method": self.method,
                "allocation": self.allocation,
                "calibration": calibration,
                "mask_training": self.mask_training,
            }
        )


class Measurement(FrozenModel):
    """Scores of one compressed model, and the plan that it has."""

    config: CompressionConfig
    method: Method
    """Method of the result: the winner's for `auto`."""
    tournament: TournamentReport | None
    """Choice of the method, for `auto`."""
    commit: str | None
    perplexity: tuple[PerplexityComparison, ...]
    tasks: tuple[TaskComparison, ...]
    geometry: ModelGeometry
    plan: ModelPlan
    allocation: AllocationReport | None
    removed_fraction: float
    seconds: float
    """Duration of compression and evaluation."""
    compression_seconds: float
    """Duration of the finishing run of the compression, without opening the model."""
    warnings: tuple[str, ...]

    def kept_attention(self) -> float:
        """Return the fraction of the attention's parameters that the plan keeps."""
        layers, dense = self.plan.layers, self.geometry.dense_layer()
        kept_parameters = sum(layer.attention_parameters(self.geometry) for layer in layers)
        return kept_parameters / (len(layers) * dense.attention_parameters(self.geometry))

    def kept_neurons(self) -> float:
        """Return the fraction of the MLPs' parameters that the plan keeps."""
        layers, dense = self.plan.layers, self.geometry.dense_layer()
        kept_parameters = sum(layer.mlp_parameters(self.geometry) for layer in layers)
        return kept_parameters / (len(layers) * dense.mlp_parameters(self.geometry))


def engine_digest() -> str:
    """Return the SHA-256 of the engine's source files and of this file."""
    return combined_sha256([*ENGINE.rglob("*.py"), Path(__file__)])


def engine_commit() -> str | None:
    """Return the commit of the engine's repository, for the reader; None without a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ENGINE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@contextmanager
def state_directory(directory: Path | None) -> Iterator[Path]:
    """Yield the directory for the measurements of this engine; a temporary one without a state."""
    if directory is not None:
        yield directory / f"engine-{engine_digest()[:16]}"
        return
    with tempfile.TemporaryDirectory(prefix="intraslice-benchmark-") as folder:
        yield Path(folder)


@dataclass(kw_only=True)
class Measurements:
    """Measurements of one model with the same evaluation."""

    model: Path
    """Directory of the dense model."""
    evaluation: EvaluationConfig
    directory: Path
    """Directory of the saved measurements and of unfinished ones."""
    console: Console
    tasks: OpenedTasks | None = None
    """Tasks to score, in addition to the evaluation's texts."""
    _dense_scores: DenseScores = field(default_factory=DenseScores)

    def measure(self, config: CompressionConfig, label: str) -> Measurement:
        """Return the scores with these settings: saved ones, or else measured now.

        Raises:
            IntraSliceError: if the compression or the evaluation fails.
        """
        key = self._key(config)
        file = self.directory / "scores" / f"{key}.json"
        if file.is_file():
            measurement = Measurement.model_validate_json(file.read_bytes())
        else:
            measurement = self._measured(config, label, self.directory / "unfinished" / key)
            with atomic_file(file) as partial:
                partial.write_text(measurement.model_dump_json(indent=1), encoding="utf-8")
        scores = ", ".join(f"{score.compressed:.2f}" for score in measurement.perplexity)
        correlation = measurement.allocation and measurement.allocation.rank_correlation
        suffix = "" if correlation is None else f", rank correlation {correlation:.3f}"
        self.console.print(
            f"{label}: perplexity {scores or '-'}, {measurement.removed_fraction:.1%} removed, "
            f"{measurement.seconds:.0f} s{suffix}"
        )
        return measurement

    def remove_statistics(self) -> None:
        """Remove the statistics that compressions share, which take gigabytes."""
        shutil.rmtree(self.directory / "statistics", ignore_errors=True)

    def _key(self, config: CompressionConfig) -> str:
        """Return the digest of everything that the scores depend on."""
        device = resolve_device("auto")
        files = [Path(text).expanduser() for text in self.evaluation.perplexity]
        return content_key(
            engine=engine_digest(),
            model=fingerprint(self.model),
            config=config.model_dump(mode="json"),
            **calibration_facts(config.resolved_calibration),
            evaluation=self.evaluation.model_dump(mode="json"),
            evaluated=[file_sha256(file) if file.is_file() else None for file in files],
            device=device.type,
            dtype=str(resolve_dtype("auto", device, torch.bfloat16)),
        )

    def _measured(self, config: CompressionConfig, label: str, place: Path) -> Measurement:
        """Compress into `place`, score the result, and remove it.

        `place` may have the unfinished or finished compression of an interrupted run.
        """
        started = time.perf_counter()
        out = place / "out"
        with self.console.status(label) as status:

            def show(event: ProgressEvent) -> None:
                status.update(f"{label}: {event.message}")

            if not (out / REPORT_FILE).is_file():
                (self.directory / "statistics").mkdir(parents=True, exist_ok=True)
                room = shutil.disk_usage(self.directory).free // 2
                compress_model(
                    str(self.model),
                    out,
                    config,
                    statistics_cache=StatisticsCache(
                        directory=self.directory / "statistics", max_bytes=room
                    ),
                    resume_state=ResumeState(directory=place / "state"),
                    verify=False,
                    on_progress=show,
                )
            report = CompressionReport.model_validate_json((out / REPORT_FILE).read_bytes())
            scores = evaluate_pair(
                self.model,
                out,
                self.evaluation,
                materials=Materials(
                    tasks=self.tasks,
                    seen_sources=config.seen_sources,
                    dense_scores=self._dense_scores,
                ),
                on_progress=show,
            )
        shutil.rmtree(place)
        return Measurement(
            config=config,
            method=report.method,
            tournament=report.tournament,
            commit=engine_commit(),
            perplexity=scores.perplexity,
            tasks=scores.tasks,
            geometry=report.geometry,
            plan=report.plan,
            allocation=report.allocation,
            removed_fraction=report.removed_fraction,
            seconds=time.perf_counter() - started,
            compression_seconds=report.seconds,
            warnings=report.warnings,
        )
