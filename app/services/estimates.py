"""Validation and estimates of jobs before they run, and the measured speeds they use."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.adapters.database import rates
from app.domain.job import Job, JobRequest
from app.domain.principal import Principal
from app.domain.validation import (
    Caution,
    Duration,
    TournamentPreview,
    Validation,
    cautions,
    predict,
    targets_for,
)
from app.domain.worker import RequiredMemory, Requirement
from app.services.admission import AdmittedJob, admit
from app.services.fleet import cautions_of
from app.services.requirements import required_gpu_bytes
from app.services.resources import Resources
from app.services.uploads import locator
from intraslice_core.config import AUTO
from intraslice_core.cost_model import (
    Estimate,
    TournamentPlan,
    estimate,
    plan_tournament,
    stage_work,
)
from intraslice_core.progress import Stage

_SHORTEST_SECONDS = 0.01
"""Minimum duration of a stage whose speed is recorded; shorter ones are noise."""


def validate_job(resources: Resources, principal: Principal, request: JobRequest) -> Validation:
    """Run the checks of creation, then estimate the job; nothing is queued or written.

    Raises:
        InvalidRequestError: if the job would be rejected.
    """
    admitted = admit(resources.settings, request, locator(resources, principal.project_id))
    plan = _tournament(admitted)
    likely = admitted.compression if plan is None else plan.candidates[0].config
    warnings = cautions(admitted.dense, likely, admitted.evaluation)
    calibration = likely.resolved_calibration
    expected = _estimate(admitted, plan)
    durations, trials, further = _predicted(resources, admitted, expected, plan)
    needed = RequiredMemory(
        gpu_bytes=required_gpu_bytes(admitted),
        host_bytes=None if expected is None else expected.peak_memory_bytes,
    )
    warnings += further
    warnings += cautions_of(resources, Requirement.of(request.compression, needed))
    return Validation(
        estimate=expected,
        gpu_bytes=needed.gpu_bytes,
        seconds=durations[0].seconds if durations else None,
        durations=durations,
        targets=targets_for(admitted.dense),
        tournament=None
        if plan is None
        else TournamentPreview(
            candidates=tuple(candidate.method for candidate in plan.candidates),
            excluded=dict(plan.excluded),
            seconds=trials,
        ),
        calibration_sources=tuple(part.source for part in calibration.parts()),
        warnings=tuple(warnings),
    )


def _predicted(
    resources: Resources,
    admitted: AdmittedJob,
    expected: Estimate | None,
    plan: TournamentPlan | None,
) -> tuple[tuple[Duration, ...], float | None, list[Caution]]:
    """Return the durations, the seconds of the trials of `auto`, and warnings about both."""
    if expected is None:
        message = "the model's settings cannot be read here before a worker opens it"
        return (), None, [Caution(code="model_not_readable_here", message=message)]
    warnings = _about_disk(resources, admitted, expected)
    trials: float | None = None
    if plan is None:
        durations = _durations(resources, admitted, expected)
    else:
        durations, trials = _durations_of_auto(resources, admitted, expected, plan)
    if not durations:
        message = "no worker has finished a job of this method yet: its speed is not known"
        warnings.append(Caution(code="speed_unknown", message=message))
    elif admitted.compression.devices > 1:
        message = (
            f"the expected time is that of one device: {admitted.compression.devices} divide the"
            " calibration among them"
        )
        warnings.append(Caution(code="speed_of_one_device", message=message))
    return durations, trials, warnings


def record_rates(
    resources: Resources, job: Job, report: Mapping[str, Any], seconds: Mapping[Stage, float]
) -> None:
    """Record the speed of a finished job for later estimates.

    Only a job that did all of its work on one device counts: not one that resumed another
    attempt's, nor one of a sweep, whose jobs share work.
    """
    device, params = report.get("device"), report.get("compressible_before")
    shares_work = job.attempt > 1 or job.sweep_id is not None or job.compression.devices > 1
    if device is None or not params or shares_work:
        return
    layers = report["geometry"]["num_hidden_layers"]
    compression = job.compression
    if compression.method == AUTO:  # the rates are those of the winner's own run
        compression = compression.model_copy(update={"method": report["method"]})
    work = stage_work(params, layers, compression, job.evaluation)
    shown = {
        stage: amount / seconds[stage]
        for stage, amount in work.items()
        if seconds.get(stage, 0.0) >= _SHORTEST_SECONDS
    }
    with resources.database.transaction() as transaction:
        rates.record(transaction, device, compression.method, shown)


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
    peak = max(each.peak_memory_bytes for each in estimates)
    return estimates[0].model_copy(update={"peak_memory_bytes": peak})


def _durations_of_auto(
    resources: Resources, admitted: AdmittedJob, expected: Estimate, plan: TournamentPlan
) -> tuple[tuple[Duration, ...], float | None]:
    """Return the durations with the slowest candidate as winner, and the seconds of the trials.

    The trials are as slow as the candidate's own run, compared with the cost model's prediction.
    """
    slowest: dict[str, tuple[Duration, float]] = {}
    for candidate in plan.candidates:
        whole = replace(admitted, compression=candidate.config)
        config = candidate.config.model_copy(update={"recover": None})
        alone = replace(admitted, compression=config, evaluation=None)
        own = {each.device: each.seconds for each in _durations(resources, alone, expected)}
        for duration in _durations(resources, whole, expected):
            trials = plan.seconds * own[duration.device] / candidate.own_seconds
            both = duration.model_copy(update={"seconds": duration.seconds + trials})
            earlier = slowest.get(duration.device)
            if earlier is None or earlier[0].seconds < both.seconds:
                slowest[duration.device] = (both, trials)
    ranked = sorted(slowest.values(), key=lambda pair: pair[0].measured_at, reverse=True)
    return tuple(duration for duration, _ in ranked), ranked[0][1] if ranked else None


def _durations(
    resources: Resources, admitted: AdmittedJob, expected: Estimate
) -> tuple[Duration, ...]:
    assert admitted.dense is not None  # without the dense model nothing is expected
    assert admitted.dense.geometry is not None
    layers = admitted.dense.geometry.num_hidden_layers
    work = stage_work(
        expected.compressible_before, layers, admitted.compression, admitted.evaluation
    )
    with resources.database.transaction() as transaction:
        return predict(rates.of_method(transaction, admitted.compression.method), work)


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
