"""Processes of a launcher, in which a module of the tests runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from intraslice_core.launcher import Launch

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


def launch_without_a_launcher(
    processes: int, module: str, *arguments: object
) -> list[subprocess.CompletedProcess[str]]:
    """Run a module in processes that have the variables of a launch, and return their ends.

    The first one runs the store; each is alone on its machine, and so has its first device.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> subprocess.CompletedProcess[str]:
        position = Launch(
            rank=rank,
            count=processes,
            local_rank=0,
            address="127.0.0.1",
            port=port,
            hosted=False,
        )
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env={**os.environ, **position.environment(), "OMP_NUM_THREADS": "1"},
        )

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(run, range(processes)))
