"""Processes with a device each compress as one process does, and mix no devices.

That one of the devices is full once changes nothing but the size of the batches of both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.pipeline import compress_model
from tests.intraslice_core.parallel.comparison import (
    LOOSE_TOLERANCE,
    assert_same_model,
    report_in,
)
from tests.intraslice_core.parallel.launching import launch_without_a_launcher
from tests.intraslice_core.tiny_models import tiny_llama
from tests.on_cuda import paired
from tests.on_cuda.devices import REAL, settings

METHODS = ("intraslice_plus",)


@pytest.mark.skipif(REAL, reason="each process needs a GPU of its own")
def test_two_processes_work_on_their_devices_alone(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    for done in launch_without_a_launcher(2, paired.__name__, dense, tmp_path / "2", *METHODS):
        assert done.returncode == 0, done.stderr[-5000:]
    for method in METHODS:
        config = settings(method=method, device="cpu")
        compress_model(str(dense), tmp_path / "1" / method, config, verify=False)
        assert_same_model(tmp_path / "2" / method, tmp_path / "1" / method, LOOSE_TOLERANCE)
        warnings = "\n".join(report_in(tmp_path / "2" / method).warnings)
        assert "compression.batch_size was lowered from 8 to 4" in warnings
