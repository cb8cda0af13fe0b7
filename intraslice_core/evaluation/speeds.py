"""Speed comparison of two checkpoints, in a clean process where this one would distort it."""

from __future__ import annotations

from pathlib import Path

from intraslice_core.config import EvaluationConfig
from intraslice_core.device import keeps_few_kernels
from intraslice_core.device_memory import out_of_device_memory, says_out_of_memory
from intraslice_core.errors import IntraSliceError, MeasurementError
from intraslice_core.evaluation import speed_process
from intraslice_core.evaluation.clean_process import PACKAGES_DIRECTORY, CleanProcess
from intraslice_core.evaluation.timing import compare_speeds
from intraslice_core.progress import CancellationCheck
from intraslice_core.reports.schema import LoadReport, SpeedReport


def compare_speeds_apart(
    dense_dir: Path,
    compressed_dir: Path,
    config: EvaluationConfig,
    compute: tuple[str, str],
    should_cancel: CancellationCheck,
) -> tuple[SpeedReport | None, tuple[LoadReport, ...]]:
    """Time both models, in a clean process where this process caches few compiled kernels."""
    dtype, device = compute
    if not keeps_few_kernels():
        return compare_speeds(
            dense_dir,
            compressed_dir,
            config,
            dtype=dtype,
            device=device,
            should_cancel=should_cancel,
        )
    process = CleanProcess(
        program=speed_process.__file__,
        arguments=[str(PACKAGES_DIRECTORY)],
        make_error=_error,
    )
    request = {
        "dense": str(dense_dir.resolve()),
        "compressed": str(compressed_dir.resolve()),
        "config": config.model_dump(mode="json"),
        "dtype": dtype,
        "device": device,
    }
    reply = process.run(request, should_cancel)
    speed = reply["speed"]
    return (
        speed and SpeedReport.model_validate(speed),
        tuple(LoadReport.model_validate(load) for load in reply["loads"]),
    )


def _error(reason: str) -> IntraSliceError:
    """Return the error of a process that could not measure the speed."""
    if says_out_of_memory(reason):
        return out_of_device_memory(reason, "evaluation.speed_grid")
    return MeasurementError(f"speed could not be measured: {reason}")
