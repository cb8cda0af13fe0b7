"""Processes of a launcher, in which a module of the tests runs."""

from __future__ import annotations

import os
import subprocess
import sys

TIMEOUT_SECONDS = 600


def launch(processes: int, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a module in every process of torchrun, and return its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", module, *map(str, arguments)]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
