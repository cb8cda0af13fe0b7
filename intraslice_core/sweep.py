"""One model compressed at several ratios, by one or several methods, from shared measurements.

The model is opened once. Calibration tokens, sensitivity, moments of activations, dense hidden
states and the dense model's scores are computed once and reused by every compression that needs the
same: methods share all that depends on the calibration tokens alone. A method with a share of
self-written text has tokens of its own. Every compression ends with the bytes that it would have
written alone.

    OUT/ratio-0.3/              an ordinary checkpoint
    OUT/sweep.json              all results side by side, rewritten after each compression
    OUT/flap-ratio-0.3/         a checkpoint of a comparison of methods
    OUT/bench.json              the results of a comparison, in place of `sweep.json`
    OUT/.sweep/                 shared and unfinished files; removed at the end
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

import intraslice_core
from intraslice_core.allocation.budget import compression_budget
from intraslice_core.allocation.rounding import require_rounding
from intraslice_core.checkpoints.manifest import model_fingerprint
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_directory
from intraslice_core.checkpoints.weight_files import weight_bytes
from intraslice_core.config import AUTO, UNLIMITED, CompressionConfig, ModelLimits
from intraslice_core.device import bound_allocator, resolve_device
from intraslice_core.errors import ConfigurationError, OutputExistsError, QualityGateError
from intraslice_core.evaluation.scoring import DenseScores
from intraslice_core.export.targets import require_target
from intraslice_core.files import (
    atomic_file,
    require_free_output,
    require_writable_directory,
    require_writable_file,
)
from intraslice_core.methods.auto import possible_methods
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
from intraslice_core.publication import UNVERIFIED, reset_peak_memory
from intraslice_core.rank_connection import require_single_process
from intraslice_core.reports.references import recorded_reference
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport
from intraslice_core.reports.sweep import SweepChild, SweepPoint, SweepReport, SweepRequest
from intraslice_core.resume_state import ResumeState
from intraslice_core.run import OpenedModel, Run
from intraslice_core.scratch import held_directory, scratch_directory
from intraslice_core.statistics_cache import StatisticsCache

SWEEP_FILE = "sweep.json"
BENCH_FILE = "bench.json"
WORK_FOLDER = ".sweep"
FURTHER_SHARE = 0.5
"""Assumed cost of each further ratio relative to the method's first, for the progress display."""
_FIELDS = {"compression.method": "methods", "compression.ratio": "ratios"}
"""Fields of a comparison in place of those of a single compression."""


def folder_name(request: SweepRequest, child: SweepChild) -> str:
    """Return the name of a checkpoint: `ratio-0.3`, or `flap-ratio-0.3` where methods are named."""
    name = f"ratio-{child.ratio!r}"
    return f"{child.method}-{name}" if request.methods else name


def report_file(request: SweepRequest) -> str:
    """Return the name of the file with all results."""
    return BENCH_FILE if request.methods else SWEEP_FILE


def compress_sweep(
    request: SweepRequest,
    out: Path,
    *,
    limits: ModelLimits = UNLIMITED,
    offload_dir: Path | None = None,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> SweepReport:
    """Compress by every method and at every ratio that is not already finished in `out`.

    Args:
        request: model, settings, ratios and methods.
        out: created if needed; an interrupted sweep resumes.
        limits: largest model that is accepted.
        offload_dir: directory for hidden states instead of memory.
        on_progress: called with every step; fractions are of the whole sweep.
        should_cancel: called between batches. Finished compressions stay, unfinished ones can be
            resumed.

    Returns:
        The report, which is also written to `sweep.json` or, where methods are named, `bench.json`.

    Raises:
        OutputExistsError: if the directory of a compression has other content.
        OutputInUseError: if another process runs a sweep into `out`.
        OutputNotWritableError: if `out` or `offload_dir` cannot be written.
        IntraSliceError: one of the tree in `errors.py`.
    """
    resolve_device(request.settings.device)
    require_writable_directory(out, "out")
    require_writable_file(out / report_file(request), "out")
    require_writable_directory(offload_dir, "offload_dir")
    require_single_process("a sweep or a comparison of methods", request.settings.devices)
    bound_allocator()
    for child in request.children:
        _finished(request, child, out)
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
    """Do all compressions; the arguments are those of `compress_sweep`."""
    work = out / WORK_FOLDER
    finished = {child: _finished(request, child, out) for child in request.children}
    progress = _Progress(request.children, on_progress)
    with scratch_directory("model-", work) as scratch:
        started = time.perf_counter()
        raise_if_cancelled(should_cancel)
        progress.opening(f"opening {request.model}")
        source = open_directory(request.model, scratch.directory, limits)
        opened = OpenedModel(reference=request.model, directory=source.path, wrapper=source.wrapper)
        _require_same_model(opened, finished, out)
        report = _empty_report(request, opened, time.perf_counter() - started)
        cache = StatisticsCache(
            directory=work / "shared", max_bytes=shutil.disk_usage(work).free // 2
        )
        scores = DenseScores()
        for child in request.children:
            run = Run(
                on_progress=progress.of(child),
                should_cancel=should_cancel,
                statistics_cache=cache,
                resume_state=ResumeState(directory=work / folder_name(request, child)),
                dense_scores=scores,
                offload_dir=offload_dir,
                verify=request.verify,
            )
            point = _point(request, opened, out, child, finished[child], run)
            report = report.with_point(point)
            _write(report, out / report_file(request))
            progress.done(child)
            shutil.rmtree(work / folder_name(request, child), ignore_errors=True)
    return report


def _require_same_model(
    opened: OpenedModel, finished: Mapping[SweepChild, CompressionReport | None], out: Path
) -> None:
    """Raise if finished results are of another model; reports know a directory by its name only.

    Raises:
        OutputExistsError: naming the output directory.
    """
    fingerprints = {report.base_fingerprint for report in finished.values() if report is not None}
    if fingerprints and fingerprints != {model_fingerprint(opened.directory)}:
        raise OutputExistsError(
            f"{out} contains results of another model with the same name",
            field="out",
            hint="give another directory or remove it",
        )


def _empty_report(request: SweepRequest, opened: OpenedModel, seconds: float) -> SweepReport:
    """Return the report without points, after checking that every compression is possible.

    Raises:
        ConfigurationError: naming the setting, and the method where several are compared.
    """
    with CheckpointReader(opened.directory) as reader:
        geometry = reader.family.geometry(reader.config)
        for child in request.children:
            with _naming(request, child):
                _require_possible(reader, opened, request.config(child))
    return SweepReport(
        engine_version=intraslice_core.__version__,
        model=request.model,
        settings=request.settings,
        methods=request.methods,
        evaluation=request.evaluation,
        params_before=dense_parameters(geometry),
        bytes_before=weight_bytes(opened.directory),
        opening_seconds=seconds,
    )


def _require_possible(
    reader: CheckpointReader, opened: OpenedModel, config: CompressionConfig
) -> None:
    """Raise if target, method or budget do not suit the model; for `auto`, those of every method.

    Raises:
        ConfigurationError: naming the setting.
    """
    if config.method == AUTO:
        possible_methods(config, partial(_require_possible, reader, opened))
        return
    geometry = reader.family.geometry(reader.config)
    demands = require_target(config, opened.target_type(config.target, reader.family.model_type))
    budget = compression_budget(config, geometry, reader.dtype.itemsize)
    require_rounding(config, geometry, budget, demands.shapes)


@contextmanager
def _naming(request: SweepRequest, child: SweepChild) -> Iterator[None]:
    """Name the method, the ratio and their fields in errors of a comparison of methods."""
    try:
        yield
    except ConfigurationError as error:
        if request.methods:
            error.message = f"{child.method} at ratio {child.ratio!r}: {error.message}"
            error.field = _FIELDS.get(error.field or "", error.field)
        raise


def _finished(request: SweepRequest, child: SweepChild, out: Path) -> CompressionReport | None:
    """Return the report of a checkpoint that an earlier sweep finished with the same settings.

    Raises:
        OutputExistsError: if the directory has other content.
    """
    place = out / folder_name(request, child)
    try:
        report = CompressionReport.model_validate_json((place / REPORT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        require_free_output(place)
        return None
    except ValidationError:
        report = None
    if report is None or not _matches(report, request, child):
        raise OutputExistsError(
            f"{place} contains a compression with other settings",
            field="out",
            hint="give another directory or remove it",
        )
    return report


def _matches(report: CompressionReport, request: SweepRequest, child: SweepChild) -> bool:
    """Report whether a checkpoint was compressed and evaluated as requested."""
    measured = report.evaluation and report.evaluation.config
    config = request.config(child)
    if (report.tournament is not None) != (config.method == AUTO):
        return False
    if config.method == AUTO:  # the report holds the winner
        config = config.model_copy(update={"method": report.method})
    if config.round_to is None:  # the report holds the one selected for the model
        config = config.model_copy(update={"round_to": report.config.round_to})
    return (
        recorded_reference(report.model) == recorded_reference(request.model)
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
    child: SweepChild,
    finished: CompressionReport | None,
    run: Run,
) -> SweepPoint:
    """Return the result of one compression: finished earlier, or made now."""
    name, config = folder_name(request, child), request.config(child)
    if finished is not None:
        return SweepPoint.of(child, name, finished)
    reset_peak_memory(resolve_device(config.device))
    try:
        report = compress_opened(opened, out / name, config, request.evaluation, run)
    except QualityGateError as error:  # another one may still pass
        return SweepPoint(
            method=child.method, ratio=child.ratio, directory=name, refused=str(error)
        )
    return SweepPoint.of(child, name, report)


def _write(report: SweepReport, file: Path) -> None:
    with atomic_file(file) as partial:
        partial.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


@dataclass
class _Progress:
    """Progress of the whole sweep, combined from that of each compression."""

    children: tuple[SweepChild, ...]
    listener: ProgressListener
    finished: float = 0.0
    """Weight of the finished compressions."""

    def _weight(self, child: SweepChild) -> float:
        """Return 1 for the first compression of a method, which measures, and less for others."""
        first = next(other for other in self.children if other.method == child.method)
        return 1.0 if child == first else FURTHER_SHARE

    @property
    def _total(self) -> float:
        return sum(self._weight(child) for child in self.children)

    def opening(self, message: str) -> None:
        """Report a step before the first compression."""
        self.listener(ProgressEvent(stage=Stage.LOAD, message=message, fraction=0.0))

    def of(self, child: SweepChild) -> ProgressListener:
        """Return the listener for one compression."""
        started, weight = time.perf_counter(), self._weight(child)
        name = f"ratio {child.ratio!r}"
        if len({other.method for other in self.children}) > 1:
            name = f"{child.method}, {name}"

        def relay(event: ProgressEvent) -> None:
            fraction = (self.finished + event.fraction * weight) / self._total
            elapsed = time.perf_counter() - started
            further = (self._total - self.finished - weight) / weight

            def whole(left: float | None) -> float | None:
                return None if left is None else left + (elapsed + left) * further

            self.listener(
                event.model_copy(
                    update={
                        "message": f"{name}: {event.message}",
                        "fraction": fraction,
                        "eta_seconds": whole(event.eta_seconds),
                        "eta_seconds_low": whole(event.eta_seconds_low),
                        "eta_seconds_high": whole(event.eta_seconds_high),
                    }
                )
            )

        return relay

    def done(self, child: SweepChild) -> None:
        """Count a compression as finished."""
        self.finished += self._weight(child)
