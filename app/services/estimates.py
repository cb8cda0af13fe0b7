"""Validation and estimates of jobs before they run, and the finished jobs that they follow from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.adapters.database import past_runs
from app.domain.job import JobRecord, JobRequest
from app.domain.principal import Principal
from app.domain.validation import (
    Caution,
    Duration,
    TournamentPreview,
    Validation,
    cautions,
    targets_for,
)
from app.domain.worker import RequiredMemory, Requirement
from app.services import fleet
from app.services.admission import AdmittedJob
from app.services.queue_forecast import forecast
from app.services.requirements import required_gpu_bytes, required_host_bytes
from app.services.resources import Resources
from app.services.upload_facts import admit_request
from intraslice_core.accelerators import GpuClass, gpu_class_named
from intraslice_core.config import AUTO, CompressionConfig, EvaluationConfig
from intraslice_core.cost_model import (
    REFERENCE_RATES,
    Estimate,
    MachineRates,
    PastRun,
    Prediction,
    TournamentPlan,
    estimate,
    machine_rates,
    plan_tournament,
    predict_duration,
    stage_seconds,
)
from intraslice_core.cost_model.past_runs import OTHER_METHOD_FACTOR, WIDE_FACTOR
from intraslice_core.plan import ModelGeometry
from intraslice_core.progress import Stage

_SHORTEST_SECONDS = 0.01
"""Shortest measured duration of a stage that is recorded; shorter ones are noise."""
_NO_JOB = (
    "no worker has finished a job yet: the time is the cost model's, and may be off by a factor of "
    f"{WIDE_FACTOR:g}"
)
_OTHER_METHODS = (
    "no worker has finished a job of this method yet: the time follows from other methods, and may "
    f"be off by a factor of {OTHER_METHOD_FACTOR:g}"
)


def validate_job(resources: Resources, principal: Principal, request: JobRequest) -> Validation:
    """Run the checks of creation, then estimate the job; nothing is queued or written.

    Raises:
        InvalidRequestError: if the job would be rejected.
    """
    admitted = admit_request(resources, principal.project_id, request)
    plan = _tournament(admitted)
    likely = admitted.compression if plan is None else plan.candidates[0].config
    warnings = cautions(admitted.dense, likely, admitted.evaluation)
    calibration = likely.resolved_calibration
    expected = _estimate(admitted, plan)
    needed = RequiredMemory(
        gpu_bytes=required_gpu_bytes(admitted),
        host_bytes=None if expected is None else expected.least_memory_bytes,
    )
    requirement = Requirement.of(request.compression, needed)
    times = _predicted(resources, admitted, plan, requirement)
    warnings += _about_estimates(resources, admitted, expected, times)
    warnings += fleet.cautions_of(resources, requirement)
    likely_time = times.likely
    return Validation(
        estimate=expected,
        gpu_bytes=needed.gpu_bytes,
        gpu_host_bytes=required_host_bytes(admitted),
        seconds_low=None if likely_time is None else likely_time.low,
        seconds=None if likely_time is None else likely_time.expected,
        seconds_high=None if likely_time is None else likely_time.high,
        durations=times.measured,
        queue=forecast(resources, principal.project_id, request.priority, requirement),
        targets=targets_for(admitted.dense),
        tournament=None
        if plan is None
        else TournamentPreview(
            candidates=tuple(candidate.method for candidate in plan.candidates),
            excluded=dict(plan.excluded),
            seconds=None if likely_time is None else likely_time.stages.get(Stage.TOURNAMENT, 0.0),
        ),
        calibration_sources=tuple(part.source for part in calibration.parts()),
        warnings=tuple(warnings),
    )


def record_run(
    resources: Resources, job: JobRecord, report: Mapping[str, Any], seconds: Mapping[Stage, float]
) -> None:
    """Record the durations of a finished job for later estimates.

    Only a job that did all of its work at once on one device counts: not one that was paused or
    interrupted and has reused what earlier attempts left, nor one of a sweep, whose jobs share
    work. Stages that a clock ended say nothing about the machine.
    """
    device = report.get("device")
    if device is None or job.fencing_token > 1 or job.sweep_id is not None:
        return
    if job.compression.devices > 1:
        return
    compression = job.compression
    if compression.method == AUTO:  # the durations are those of the winner's own run
        compression = compression.model_copy(update={"method": report["method"]})
    geometry = ModelGeometry.model_validate(report["geometry"])
    item_bytes = max(round(report["bytes_before"] / report["params_before"]), 1)
    work = _work(geometry, item_bytes, compression, job.evaluation)
    measured = {
        stage: seconds[stage]
        for stage in work
        if seconds.get(stage, 0.0) >= _SHORTEST_SECONDS and stage not in _timed(compression)
    }
    if not measured:
        return
    with resources.database.transaction() as transaction:
        earlier = _runs_on(past_runs.by_device(transaction), device)
        work = {stage: work[stage] for stage in measured}
        predicted = predict_duration(earlier, compression.method, work).expected
        run = PastRun(
            method=compression.method,
            work=work,
            seconds=measured,
            predicted=predicted if earlier else None,
        )
        past_runs.record(transaction, device, run)


def _runs_on(groups: Sequence[past_runs.DeviceRuns], device: str) -> tuple[PastRun, ...]:
    """Return the runs of a class of machines, newest first."""
    return next((group.runs for group in groups if group.device == device), ())


def _timed(compression: CompressionConfig) -> frozenset[Stage]:
    """Return the stages that a clock may end before their work is done."""
    stages = set()
    if compression.recover is not None and compression.recover.max_seconds is not None:
        stages.add(Stage.RECOVER)
    training = compression.mask_training
    if training is not None and training.max_seconds is not None:
        stages.add(Stage.ALLOCATE)
    return frozenset(stages)


def _work(
    geometry: ModelGeometry,
    item_bytes: int,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
    rates: MachineRates = REFERENCE_RATES,
) -> dict[Stage, float]:
    """Return the work of each stage: its seconds on the reference machine, without time limits."""
    if compression.recover is not None:
        untimed = compression.recover.model_copy(update={"max_seconds": None})
        compression = compression.model_copy(update={"recover": untimed})
    return stage_seconds(geometry, compression, evaluation, item_bytes, rates)


# -- predictions -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Times:
    """Predicted durations of a job."""

    likely: Prediction | None = None
    """That of the machines that finished a job last; None if only a worker can read the model."""
    measured: tuple[Duration, ...] = ()
    """One for each class of machines that has finished a job."""


def _predicted(
    resources: Resources,
    admitted: AdmittedJob,
    plan: TournamentPlan | None,
    requirement: Requirement,
) -> _Times:
    """Predict the durations on all classes of machines that have finished a job, newest first.

    Before any job, the cost model predicts that of a device that can run this one.
    """
    if admitted.dense is None or admitted.dense.geometry is None:
        return _Times()
    with resources.database.transaction() as transaction:
        groups = past_runs.by_device(transaction)
    if not groups:
        name = fleet.name_of_gpu(resources, requirement)
        gpu = None if name is None else gpu_class_named(name)
        return _Times(likely=_slowest((), admitted, plan, gpu)[1])
    measured, predictions = [], []
    for group in groups:
        method, prediction = _slowest(group.runs, admitted, plan)
        predictions.append(prediction)
        measured.append(
            Duration(
                device=group.device,
                seconds_low=prediction.low,
                seconds=prediction.expected,
                seconds_high=prediction.high,
                jobs=sum(run.method == method for run in group.runs),
                measured_at=group.measured_at,
            )
        )
    return _Times(likely=predictions[0], measured=tuple(measured))


def _slowest(
    runs: Sequence[PastRun],
    admitted: AdmittedJob,
    plan: TournamentPlan | None,
    gpu: GpuClass | None = None,
) -> tuple[str, Prediction]:
    """Return the method and the duration of the job; of `auto`, of its slowest candidate.

    Args:
        runs: finished runs on the class of machines, newest first.
        admitted: the job.
        plan: trials of `auto`; None for other methods.
        gpu: class of the GPU that would run it, where no runs show how fast it is.
    """
    dense = admitted.dense
    assert dense is not None  # without the dense model nothing is predicted
    assert dense.geometry is not None
    settings = [admitted.compression]
    if plan is not None:
        settings = [candidate.config for candidate in plan.candidates]
    rates = machine_rates(gpu, max(dense.item_bytes, 2))
    predictions = []
    for compression in settings:
        model = (dense.geometry, dense.item_bytes, compression, admitted.evaluation)
        work = _work(*model, rates)
        if plan is not None:
            # The plan's seconds are those of the reference machine.
            speed = sum(work.values()) / sum(_work(*model).values())
            work = {Stage.TOURNAMENT: plan.seconds * speed, **work}
        recover = compression.recover
        limit = None if recover is None else recover.max_seconds
        limits = {} if limit is None else {Stage.RECOVER: limit}
        prediction = predict_duration(runs, compression.method, work, limits)
        predictions.append((compression.method, prediction))
    return max(predictions, key=lambda pair: pair[1].expected)


# -- sizes and warnings ------------------------------------------------------------------------


def _tournament(admitted: AdmittedJob) -> TournamentPlan | None:
    """Return the trials of method `auto`; None for others and for models that are not read here."""
    dense, compression = admitted.dense, admitted.compression
    if compression.method != AUTO or dense is None or dense.geometry is None:
        return None
    model_type = dense.target_type(compression.target)
    return plan_tournament(compression, dense.geometry, dense.item_bytes, model_type)


def _estimate(admitted: AdmittedJob, plan: TournamentPlan | None) -> Estimate | None:
    """Return the estimate; of `auto`, that of the first candidate with the largest memory."""
    dense = admitted.dense
    if dense is None or dense.geometry is None:
        return None
    model_type = dense.target_type(admitted.compression.target)
    settings = [admitted.compression]
    if plan is not None:
        settings = [candidate.config for candidate in plan.candidates]
    estimates = [
        estimate(dense.geometry, dense.item_bytes, compression, admitted.evaluation, model_type)
        for compression in settings
    ]
    largest = {
        name: max(getattr(each, name) for each in estimates)
        for name in ("peak_memory_bytes", "least_memory_bytes")
    }
    return estimates[0].model_copy(update=largest)


def _about_estimates(
    resources: Resources, admitted: AdmittedJob, expected: Estimate | None, times: _Times
) -> list[Caution]:
    """Return warnings about what is not known before the job, and about its disk."""
    if expected is None:
        message = "the model's settings cannot be read here before a worker opens it"
        return [Caution(code="model_not_readable_here", message=message)]
    warnings = _about_disk(resources, admitted, expected)
    if not times.measured:
        warnings.append(Caution(code="speed_unknown", message=_NO_JOB))
    elif not times.measured[0].jobs:
        warnings.append(Caution(code="speed_unknown", message=_OTHER_METHODS))
    return warnings


def _about_disk(resources: Resources, admitted: AdmittedJob, expected: Estimate) -> list[Caution]:
    """Return a warning if the disk cannot hold the result and, if needed, a converted model."""
    needed = expected.bytes_after
    if admitted.dense is not None and admitted.dense.converted:
        needed += expected.bytes_before
    free = shutil.disk_usage(resources.settings.data_dir).free
    if needed < free:
        return []
    message = f"the job needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free here"
    return [Caution(code="disk_short", message=message)]
