"""Validation and estimates of jobs before they run, and the measured speeds they use."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from app.adapters.database import rates
from app.domain.job import Job, JobRequest
from app.domain.principal import Principal
from app.domain.validation import (
    Caution,
    Duration,
    Validation,
    cautions,
    predict,
    targets_for,
)
from app.services.admission import AdmittedJob, admit
from app.services.resources import Resources
from app.services.uploads import locator
from intraslice_core.cost_model import Estimate, estimate, stage_work
from intraslice_core.progress import Stage

_SHORTEST_SECONDS = 0.01
"""Minimum duration of a stage whose speed is recorded; shorter ones are noise."""


def validate_job(resources: Resources, principal: Principal, request: JobRequest) -> Validation:
    """Run the checks of creation, then estimate the job; nothing is queued or written.

    Raises:
        InvalidRequestError: if the job would be rejected.
    """
    admitted = admit(resources.settings, request, locator(resources, principal.project_id))
    warnings = cautions(admitted.dense, admitted.compression, admitted.evaluation)
    expected = _estimate(admitted)
    if expected is None:
        message = "the model's settings cannot be read here before a worker opens it"
        warnings.append(Caution(code="model_not_readable_here", message=message))
        durations: tuple[Duration, ...] = ()
    else:
        warnings += _about_disk(resources, admitted, expected)
        durations = _durations(resources, admitted, expected)
        if not durations:
            message = "no worker has finished a job of this method yet: its speed is not known"
            warnings.append(Caution(code="speed_unknown", message=message))
    return Validation(
        estimate=expected,
        seconds=durations[0].seconds if durations else None,
        durations=durations,
        targets=targets_for(admitted.dense),
        calibration_sources=tuple(
            part.source for part in admitted.compression.resolved_calibration.parts()
        ),
        warnings=tuple(warnings),
    )


def record_rates(
    resources: Resources, job: Job, report: Mapping[str, Any], seconds: Mapping[Stage, float]
) -> None:
    """Record the speed of a finished job for later estimates.

    Only a job that did all of its work counts: not one that resumed another attempt's, nor one of
    a sweep, whose jobs share work.
    """
    device, params = report.get("device"), report.get("compressible_before")
    if device is None or not params or job.attempt > 1 or job.sweep_id is not None:
        return
    layers = report["geometry"]["num_hidden_layers"]
    work = stage_work(params, layers, job.compression, job.evaluation)
    shown = {
        stage: amount / seconds[stage]
        for stage, amount in work.items()
        if seconds.get(stage, 0.0) >= _SHORTEST_SECONDS
    }
    with resources.database.transaction() as transaction:
        rates.record(transaction, device, job.compression.method, shown)


def _estimate(admitted: AdmittedJob) -> Estimate | None:
    dense = admitted.dense
    if dense is None or dense.geometry is None:
        return None
    return estimate(
        dense.geometry,
        dense.item_bytes,
        admitted.compression,
        admitted.evaluation,
        dense.target_type(admitted.compression.target),
    )


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
