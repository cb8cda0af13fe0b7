"""One model compressed at several ratios from one measurement.

The model is opened once. Calibration tokens, sensitivity, dense hidden states and the dense model's
scores are computed for the first ratio and reused by all others. Every ratio ends with the bytes
that a separate compression would have written.

    OUT/ratio-0.3/      an ordinary checkpoint
    OUT/sweep.json      all results side by side, rewritten after each ratio
    OUT/.sweep/         shared and unfinished files; removed after the last ratio
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

import intraslice_core
from intraslice_core.allocation.budget import compression_budget
from intraslice_core.allocation.rounding import require_rounding
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_directory
from intraslice_core.checkpoints.weight_files import weight_bytes
from intraslice_core.config import UNLIMITED, CompressionConfig, ModelLimits
from intraslice_core.device import bound_allocator
from intraslice_core.errors import OutputExistsError, QualityGateError
from intraslice_core.evaluation.scoring import DenseScores
from intraslice_core.export.targets import require_target
from intraslice_core.files import (
    atomic_file,
    require_free_output,
    require_writable_directory,
    require_writable_file,
)
from intraslice_core.pipeline import compress_opened
from intraslice_core.plan import dense_parameters
from intraslice_core.progress import (
    CancellationCheck,
    ProgressEvent,
    ProgressListener,
    Stage,
    ignore_progress,
    never_cancelled,
    raise_if_cancelled,
)
from intraslice_core.publication import UNVERIFIED
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport
from intraslice_core.reports.sweep import SweepPoint, SweepReport, SweepRequest
from intraslice_core.resume_state import ResumeState
from intraslice_core.run import OpenedModel, Run
from intraslice_core.scratch import held_directory, scratch_directory
from intraslice_core.statistics_cache import StatisticsCache

SWEEP_FILE = "sweep.json"
WORK_FOLDER = ".sweep"
FURTHER_SHARE = 0.5
"""Assumed cost of each further ratio relative to the first, for the progress display."""


def folder_name(ratio: float) -> str:
    """Return the name of a ratio's checkpoint, such as `ratio-0.3`."""
    return f"ratio-{ratio!r}"


def compress_sweep(
    request: SweepRequest,
    out: Path,
    *,
    limits: ModelLimits = UNLIMITED,
    offload_dir: Path | None = None,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> SweepReport:
    """Compress at every ratio that is not already finished in `out`.

    Args:
        request: model, settings and ratios.
        out: created if needed; an interrupted sweep resumes.
        limits: largest model that is accepted.
        offload_dir: directory for hidden states instead of memory.
        on_progress: called with every step; fractions are of the whole sweep.
        should_cancel: called between batches. Finished ratios stay, unfinished ones can be
            resumed.

    Returns:
        The report, which is also written to `sweep.json`.

    Raises:
        OutputExistsError: if a ratio's directory has other content.
        OutputInUseError: if another process runs a sweep into `out`.
        OutputNotWritableError: if `out` or `offload_dir` cannot be written.
        IntraSliceError: one of the tree in `errors.py`.
    """
    require_writable_directory(out, "out")
    require_writable_file(out / SWEEP_FILE, "out")
    require_writable_directory(offload_dir, "offload_dir")
    bound_allocator()
    for ratio in request.ratios:
        _finished(request, ratio, out)
    work = out / WORK_FOLDER
    with held_directory(work, out):
        report = _sweep(request, out, limits, offload_dir, on_progress, should_cancel)
        shutil.rmtree(work)
    return report


def _sweep(
    request: SweepRequest,
    out: Path,
    limits: ModelLimits,
    offload_dir: Path | None,
    on_progress: ProgressListener,
    should_cancel: CancellationCheck,
) -> SweepReport:
    """Compress at every ratio; the arguments are those of `compress_sweep`."""
    work = out / WORK_FOLDER
    finished = {ratio: _finished(request, ratio, out) for ratio in request.ratios}
    progress = _Progress(request.ratios, on_progress)
    with scratch_directory("model-", work) as scratch:
        started = time.perf_counter()
        raise_if_cancelled(should_cancel)
        progress.opening(f"opening {request.model}")
        source = open_directory(request.model, scratch.directory, limits)
        opened = OpenedModel(reference=request.model, directory=source.path, wrapper=source.wrapper)
        report = _empty_report(request, opened, time.perf_counter() - started)
        cache = StatisticsCache(
            directory=work / "shared", max_bytes=shutil.disk_usage(work).free // 2
        )
        scores = DenseScores()
        for ratio in request.ratios:
            run = Run(
                on_progress=progress.of(ratio),
                should_cancel=should_cancel,
                statistics_cache=cache,
                resume_state=ResumeState(directory=work / folder_name(ratio)),
                dense_scores=scores,
                offload_dir=offload_dir,
                verify=request.verify,
            )
            point = _point(request, opened, out, ratio, finished[ratio], run)
            report = report.model_copy(update={"points": (*report.points, point)})
            _write(report, out / SWEEP_FILE)
            progress.done(ratio)
            shutil.rmtree(work / folder_name(ratio), ignore_errors=True)
    return report


def _empty_report(request: SweepRequest, opened: OpenedModel, seconds: float) -> SweepReport:
    """Return the report without points, after checking that every ratio can be met.

    Raises:
        BudgetOutOfReachError: naming the ratio that cannot.
    """
    with CheckpointReader(opened.directory) as reader:
        geometry = reader.family.geometry(reader.config)
        for ratio in request.ratios:
            config = request.config(ratio)
            budget = compression_budget(config, geometry, reader.dtype.itemsize)
            demands = require_target(
                config, opened.target_type(config.target, reader.family.model_type)
            )
            require_rounding(config, geometry, budget, demands.shapes)
    return SweepReport(
        engine_version=intraslice_core.__version__,
        model=request.model,
        settings=request.settings,
        evaluation=request.evaluation,
        params_before=dense_parameters(geometry),
        bytes_before=weight_bytes(opened.directory),
        opening_seconds=seconds,
    )


def _finished(request: SweepRequest, ratio: float, out: Path) -> CompressionReport | None:
    """Return the report of a checkpoint that an earlier sweep finished with the same settings.

    Raises:
        OutputExistsError: if the directory has other content.
    """
    place = out / folder_name(ratio)
    try:
        report = CompressionReport.model_validate_json((place / REPORT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        require_free_output(place)
        return None
    except ValidationError:
        report = None
    if report is None or not _matches(report, request, ratio):
        raise OutputExistsError(
            f"{place} contains a compression with other settings",
            field="out",
            hint="give another directory or remove it",
        )
    return report


def _matches(report: CompressionReport, request: SweepRequest, ratio: float) -> bool:
    """Report whether a checkpoint was compressed and evaluated as requested."""
    measured = report.evaluation and report.evaluation.config
    config = request.config(ratio)
    if config.round_to is None:  # the report holds the one selected for the model
        config = config.model_copy(update={"round_to": report.config.round_to})
    return (
        report.model == request.model
        and (report.config == config or _differ_by_optional_web(report.config, config))
        and report.engine_version == intraslice_core.__version__
        and measured == request.evaluation
        and (UNVERIFIED not in report.warnings or not request.verify)
    )


def _differ_by_optional_web(used: CompressionConfig, requested: CompressionConfig) -> bool:
    """Report whether settings in use lack only web text that was optional in the requested ones."""
    is_optional = requested.without_web() != requested
    return is_optional and _offline(used) == _offline(requested)


def _offline(config: CompressionConfig) -> CompressionConfig:
    """Return the settings without web text, with the text of the fine-tuning by its own name."""
    config, recover = config.without_web(), config.recover
    if recover is None or recover.source is not None:
        return config
    calibration = config.calibration
    own = {"source": calibration.source, "text_field": calibration.text_field}
    return config.model_copy(update={"recover": recover.model_copy(update=own)})


def _point(
    request: SweepRequest,
    opened: OpenedModel,
    out: Path,
    ratio: float,
    finished: CompressionReport | None,
    run: Run,
) -> SweepPoint:
    """Return the result of one ratio: finished earlier, or compressed now."""
    name = folder_name(ratio)
    if finished is not None:
        return SweepPoint.of(ratio, name, finished)
    try:
        report = compress_opened(opened, out / name, request.config(ratio), request.evaluation, run)
    except QualityGateError as error:  # a smaller ratio may still pass
        return SweepPoint(ratio=ratio, directory=name, refused=str(error))
    return SweepPoint.of(ratio, name, report)


def _write(report: SweepReport, file: Path) -> None:
    with atomic_file(file) as partial:
        partial.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


@dataclass
class _Progress:
    """Progress of the whole sweep, combined from that of each ratio."""

    ratios: tuple[float, ...]
    listener: ProgressListener
    finished: float = 0.0
    """Weight of the finished ratios."""

    def _weight(self, ratio: float) -> float:
        return 1.0 if ratio == self.ratios[0] else FURTHER_SHARE

    @property
    def _total(self) -> float:
        return sum(self._weight(ratio) for ratio in self.ratios)

    def opening(self, message: str) -> None:
        """Report a step before the first ratio."""
        self.listener(ProgressEvent(stage=Stage.LOAD, message=message, fraction=0.0))

    def of(self, ratio: float) -> ProgressListener:
        """Return the listener for one ratio's run."""
        started, weight = time.perf_counter(), self._weight(ratio)

        def relay(event: ProgressEvent) -> None:
            fraction = (self.finished + event.fraction * weight) / self._total
            left = event.eta_seconds
            if left is not None:
                seconds = time.perf_counter() - started + left
                left += seconds * (self._total - self.finished - weight) / weight
            self.listener(
                event.model_copy(
                    update={
                        "message": f"ratio {ratio!r}: {event.message}",
                        "fraction": fraction,
                        "eta_seconds": left,
                    }
                )
            )

        return relay

    def done(self, ratio: float) -> None:
        """Count a ratio as finished."""
        self.finished += self._weight(ratio)
