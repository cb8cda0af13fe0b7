"""`make demo` on the real model."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.app.embedded.processes import REPOSITORY, descendants, wait_until_dead

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_model,
    pytest.mark.postgres,
    pytest.mark.broker,
    pytest.mark.timeout(1200),
]
DEMO = [sys.executable, "examples/demo.py"]


def accept_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def runs_engine(family: set[psutil.Process]) -> bool:
    """Return whether the job's own process is among these."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "workers.child" in process.cmdline():
                return True
    return False


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("intraslice-demo-*"))


def test_the_demo_compresses_loads_and_compares_a_real_model() -> None:
    before = leftovers()
    # Little text, and no benchmark and trial compressions; the steps are the same.
    command = [*DEMO, "--quick"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = ("parameters", "in-domain", "out-of-domain", "10% off")
    for text in (*expected, "IntraSliceForCausalLM", "Water boils when", "Done in"):
        assert text in " ".join(done.stdout.split())
    assert leftovers() == before


def test_ctrl_c_during_a_job_leaves_nothing_behind(tmp_path: Path) -> None:
    before = leftovers()
    output = tmp_path / "output"
    with output.open("wb") as file:
        # A session that was started in the background of a script ignores SIGINT, and so would
        # its children.
        demo = subprocess.Popen(
            DEMO, cwd=REPOSITORY, stdout=file, stderr=file, preexec_fn=accept_interrupts
        )
    deadline = time.monotonic() + 180
    while not runs_engine(family := descendants(demo.pid)):
        assert demo.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(90) == 130, output.read_text()
    assert wait_until_dead(family, 5) == []
    assert leftovers() == before
