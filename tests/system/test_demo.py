"""`make demo` on the real model."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("intraslice-demo-*"))


def test_the_demo_compresses_loads_and_compares_a_real_model() -> None:
    before = leftovers()
    # Two samples instead of 32 and no trial compressions, for speed; the steps are the same.
    command = [*DEMO, "--samples", "2", "--allocation", "uniform"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = ("parameters", "in-domain", "out-of-domain", "tokens/s", "10% off")
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
    while "is queued" not in output.read_text() and time.monotonic() < deadline:
        assert demo.poll() is None, output.read_text()
        time.sleep(0.1)
    time.sleep(5)
    family = descendants(demo.pid)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(90) == 130, output.read_text()
    assert wait_until_dead(family, 5) == []
    assert leftovers() == before
