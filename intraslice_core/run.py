"""The state of one run: its listener, its cancellation check, its caches and its progress."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from intraslice_core.allocation.context import SensitivityCache
from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object
from intraslice_core.checkpoints.writer import WrittenRecord
from intraslice_core.config import CompressionConfig, EvaluationConfig, Target
from intraslice_core.content_key import fingerprint
from intraslice_core.cost_model import (
    REFERENCE_RATES,
    ExpectedDurations,
    MachineRates,
    expected_durations,
)
from intraslice_core.device_memory import lowered_batches_to, out_of_memory_reported
from intraslice_core.evaluation.scoring import DenseScores
from intraslice_core.export.form import WrittenReference
from intraslice_core.families.wrappers import Wrapper, wrapper_of
from intraslice_core.plan import LayerPlan, ModelGeometry
from intraslice_core.progress import (
    LONGEST_PAUSE_SECONDS,
    CancellationCheck,
    LayerDone,
    ProgressEvent,
    ProgressListener,
    RemainingTime,
    Shares,
    Stage,
    StageTimer,
    heartbeat,
    raise_if_cancelled,
    shares_of,
    stage_shares,
)
from intraslice_core.ranks import ALONE, Ranks
from intraslice_core.reports.schema import LayerReport
from intraslice_core.resume_state import ResumeState, ignore_saved
from intraslice_core.stage_speeds import StageSpeeds, expected_seconds
from intraslice_core.statistics_cache import StatisticsCache
from intraslice_core.substeps import substeps_to

_SUBSTEP_SECONDS = 1.0
"""Shortest pause between an event and a sub-step."""
_DEVICE_MEMORY_SETTINGS: Mapping[Stage, str] = MappingProxyType(
    {
        Stage.CALIBRATE: "compression.calibration.sequence_length",
        Stage.RECOVER: "compression.recover.batch_size",
        Stage.EVALUATE: "evaluation.context_length",
    }
)
"""Settings that decide how much memory of the device a stage needs; elsewhere the batch size."""


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A dense model as a directory of safetensors, with the reference that named it."""

    reference: str
    directory: Path
    wrapper: Path | None = None
    """Directory of the multimodal model whose language model this is, if it is one."""

    @functools.cached_property
    def wrapper_table(self) -> Wrapper | None:
        """Return the table of the multimodal model, None without one."""
        if self.wrapper is None:
            return None
        return wrapper_of(read_json_object(self.wrapper / CONFIG_FILE))

    def target_type(self, target: Target, text_type: str) -> str:
        """Return the model type that decides what a target supports.

        Args:
            target: of the compression.
            text_type: `model_type` of the dense model or language model.
        """
        table = self.wrapper_table
        return text_type if table is None else table.target_type(target, text_type)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of everything that decides what it computes; reads all files once."""
        return fingerprint(self.directory)


@dataclass(kw_only=True)
class Run:
    """The state of one run: listener, cancellation, caches, clock and intermediate results."""

    on_progress: ProgressListener
    should_cancel: CancellationCheck
    started: float = field(default_factory=time.perf_counter)
    warnings: list[str] = field(default_factory=list)
    statistics_cache: StatisticsCache | None = None
    resume_state: ResumeState | None = None
    dense_scores: DenseScores | None = None
    offload_dir: Path | None = None
    """Directory that holds hidden states instead of memory."""
    ranks: Ranks = ALONE
    """Ranks that share the work with this one."""
    verify: bool = True
    uploads: bool = False
    """The caller uploads the result, which has a share in the progress."""
    resumed_layers: int = 0
    earlier_seconds: float = 0.0
    """Seconds that attempts before this one worked before they stopped."""
    written: WrittenRecord | None = None
    """Digests of what the checkpoint's files must contain."""
    reference: WrittenReference | None = None
    """Model that the written files must equal, if they are of another architecture."""
    training_text: Tensor | None = None
    """Sequences to train on, (n, sequence_length), mapped from a file; None without fine-tuning."""
    shares: Shares = field(default_factory=lambda: shares_of(recover=False))
    durations: ExpectedDurations | None = None
    """Durations by the cost model; None where nothing is known about the model."""
    speeds: StageSpeeds | None = None
    """Speeds of earlier runs on this machine, read and updated."""
    calibration: Tensor | None = None
    """Calibration sequences, (samples, sequence_length); the evaluation measures its overlap."""
    tournament_seconds: float = 0.0
    """Expected duration of the trials before this run on the reference machine (`tournament`)."""
    _remaining: RemainingTime = field(init=False)
    _machine: str = ""
    _timer: StageTimer = field(default_factory=StageTimer)
    _last: ProgressEvent | None = None
    _sent: float = 0.0
    """Time of the last event, of a step or a sub-step."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """Lock of the events, which a step and the heartbeat send from two threads."""

    def __post_init__(self) -> None:
        self._remaining = RemainingTime(self.started)

    @property
    def sensitivity_cache(self) -> SensitivityCache | None:
        """Return the place for the sensitivity: shared between runs, or of this run alone."""
        if self.statistics_cache is not None:
            cache = self.statistics_cache
            return SensitivityCache(
                directory=cache.directory, has_room=cache.has_room, on_saved=ignore_saved
            )
        return None if self.resume_state is None else SensitivityCache.of_run(self.resume_state)

    @property
    def seconds(self) -> float:
        """Return the seconds of work so far, over all attempts, without pauses between them."""
        return self.earlier_seconds + time.perf_counter() - self.started

    @contextmanager
    def counting_work(self, key: str) -> Iterator[None]:
        """Count the work of earlier attempts, and save it for the next one if this one fails.

        The work of an attempt whose process is killed is not counted.

        Args:
            key: digest of the run's model and settings.
        """
        state = self.resume_state
        if state is None:
            yield
            return
        self.earlier_seconds = state.worked_seconds(key)
        try:
            yield
        except BaseException:
            if state.directory.is_dir():  # a run that is rejected leaves nothing
                state.save_worked_seconds(key, self.seconds)
            raise

    def expect(
        self,
        geometry: ModelGeometry,
        compression: CompressionConfig,
        evaluation: EvaluationConfig | None,
        item_bytes: int,
        machine: str,
        rates: MachineRates = REFERENCE_RATES,
    ) -> None:
        """Set the shares of the stages from the cost model and the speeds of earlier runs.

        Args:
            geometry: dimensions of the dense model.
            compression: settings of the compression.
            evaluation: settings of the evaluation; None without one.
            item_bytes: bytes of a stored weight.
            machine: class of machines that do the same work in the same time.
            rates: of that class, as the cost model assumes them.
        """
        durations = self.durations = expected_durations(
            geometry,
            compression,
            evaluation,
            item_bytes,
            verify=self.verify,
            uploads=self.uploads,
            rates=rates,
        )
        self._machine = machine
        earlier = [] if self.speeds is None else self.speeds.read(machine)
        stages = {Stage.TOURNAMENT: self.tournament_seconds, **durations.stages}
        seconds = expected_seconds(stages, earlier)
        self.shares = stage_shares(seconds)
        self._remaining.expected = sum(seconds.values()) if earlier else None

    def record_speeds(self) -> None:
        """Record the speeds of a finished run, unless parts of it were restored or cached."""
        measured = self._timer.seconds_until(time.perf_counter())
        resumed = self.resume_state is not None and self.resume_state.was_used
        reuses = resumed or self.statistics_cache is not None
        if self.speeds is not None and self.durations is not None and not reuses:
            self.speeds.record(self._machine, self.durations.stages, measured)

    def report(
        self,
        stage: Stage,
        message: str,
        done: float = 0.0,
        layer: int | None = None,
        layers: int | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Report progress, or stop if the run is cancelled.

        Args:
            stage: current stage.
            message: current step.
            done: finished fraction of the stage, in [0, 1].
            layer: current layer, from 0.
            layers: number of layers.
            seconds_left: remaining time of the stage, if the stage knows it.

        Raises:
            CompressionCancelledError: if the run is to stop.
        """
        self.ranks.raise_if_failed()
        raise_if_cancelled(self.should_cancel)
        begin, end = self.shares[stage]
        fraction = begin + (end - begin) * min(max(done, 0.0), 1.0)
        if self._last is not None:
            fraction = max(fraction, self._last.fraction)  # a bar never goes back
        with self._lock:
            now = time.perf_counter()
            self._timer.enter(stage, now)
            eta = self._remaining.estimate(stage, fraction, now, end=end, seconds_left=seconds_left)
            event = ProgressEvent(
                stage=stage, message=message, fraction=fraction, layer=layer, layers=layers
            )
            self._send(event.model_copy(update=self._remaining_fields(eta, now)))

    def skip(self, stage: Stage, share: float) -> None:
        """Leave a share of the current stage, which was restored, out of the run's pace."""
        begin, end = self.shares[stage]
        self._remaining.skip((end - begin) * share)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report the sub-steps of a block, and repeat the last event when none follows for long.

        Lowered batches become warnings.

        Raises:
            OutOfDeviceMemoryError: if the device has too little memory.
        """
        with (
            substeps_to(self.substep),
            lowered_batches_to(self.warn),
            heartbeat(lambda: self._repeat(LONGEST_PAUSE_SECONDS)),
            out_of_memory_reported(self._device_memory_setting),
        ):
            yield

    def warn(self, warning: str) -> None:
        """Add a warning, once."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def _device_memory_setting(self) -> str:
        """Return the setting that decides how much memory of the device this stage needs."""
        stage = Stage.LOAD if self._last is None else self._last.stage
        return _DEVICE_MEMORY_SETTINGS.get(stage, "compression.batch_size")

    def substep(self, message: str) -> None:
        """Repeat the last step's event with a sub-step, unless an event was sent just now."""
        self._repeat(_SUBSTEP_SECONDS, message)

    def _repeat(self, pause: float, message: str = "") -> None:
        """Send the last event again, with the remaining time of now, after a pause in seconds."""
        with self._lock:
            now, last = time.perf_counter(), self._last
            if last is None or now - self._sent < pause:
                return
            end = self.shares[last.stage][1]
            eta = self._remaining.estimate(last.stage, last.fraction, now, end=end)
            text = f"{last.message}: {message}" if message else last.message
            changes = {"message": text, "finished": None, **self._remaining_fields(eta, now)}
            self._sent = now
            self.on_progress(last.model_copy(update=changes))

    def _remaining_fields(self, eta: float | None, now: float) -> dict[str, float | None]:
        """Return an event's fields of the remaining time and its range."""
        low, high = (None, None) if eta is None else self._remaining.bounds(eta, now)
        return {"eta_seconds": eta, "eta_seconds_low": low, "eta_seconds_high": high}

    def _send(self, event: ProgressEvent) -> None:
        with self._lock:
            self._last, self._sent = event, time.perf_counter()
            self.on_progress(event)

    def finish(self, message: str) -> None:
        """Report the end of the engine's work; an upload may follow."""
        fraction = self.shares[Stage.EXPORT][1]
        event = ProgressEvent(stage=Stage.EXPORT, message=message, fraction=fraction)
        self._send(event)

    def layer_done(
        self, report: LayerReport, geometry: ModelGeometry, *, restored: bool = False
    ) -> None:
        """Report the result of a layer, compressed now or restored from an interrupted run."""
        layers = geometry.num_hidden_layers
        begin, end = self.shares[Stage.COMPRESS]
        if restored:
            self.skip(Stage.COMPRESS, 1.0 / layers)
        self._send(
            ProgressEvent(
                stage=Stage.COMPRESS,
                message=f"layer {report.layer + 1}/{layers} is done",
                fraction=begin + (end - begin) * (report.layer + 1) / layers,
                layer=report.layer,
                layers=layers,
                finished=_layer_done(report, geometry),
            )
        )


def _layer_done(report: LayerReport, geometry: ModelGeometry) -> LayerDone:
    plan, dense = report.plan, geometry.dense_layer()
    # Parts of the residual stream that the modules read and write, as shares of their parameters.
    whole = plan.model_copy(update={"residual_parts": None})
    attention_share = mlp_share = 1.0
    if plan.residual_parts is not None:
        attention_share = plan.attention_parameters(geometry) / whole.attention_parameters(geometry)
        mlp_share = plan.mlp_parameters(geometry) / whole.mlp_parameters(geometry)
    return LayerDone(
        layer=report.layer,
        num_attention_heads=plan.num_attention_heads,
        num_key_value_heads=plan.num_key_value_heads,
        qk_head_dim=plan.qk_head_dim,
        v_head_dim=plan.v_head_dim,
        intermediate_size=plan.intermediate_size,
        attention_part=attention_share * _head_widths(plan) / _head_widths(dense),
        mlp_part=mlp_share * plan.intermediate_size / dense.intermediate_size,
        attention_error=report.attention.relative_error,
        mlp_error=report.mlp.relative_error,
        explained_energy=report.attention.explained_energy,
    )


def _head_widths(plan: LayerPlan) -> int:
    return plan.num_attention_heads * (plan.qk_head_dim + plan.v_head_dim)
