"""A clean process begins after this one has returned the memory that it does not use."""

from __future__ import annotations

import gc
import time
import weakref
from pathlib import Path

import pytest

from intraslice_core.errors import MeasurementError
from intraslice_core.evaluation.clean_process import CleanProcess
from intraslice_core.progress import never_cancelled

PROGRAM = """
import json, pathlib, sys, time
pathlib.Path(sys.argv[2]).write_text(json.dumps(time.monotonic_ns()))
"""


class Node:
    """Object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def process(tmp_path: Path) -> CleanProcess:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return CleanProcess(program=str(program), arguments=[], make_error=MeasurementError)


def test_cycles_are_collected_before_the_program_starts(process: CleanProcess) -> None:
    gc.disable()
    try:
        freed: list[int] = []
        weakref.finalize(Node(), lambda: freed.append(time.monotonic_ns()))
        assert freed == []
        started = process.run({}, never_cancelled)
        assert freed[0] < started
    finally:
        gc.enable()
