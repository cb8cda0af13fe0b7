"""Subprocess for one program: isolated, offline and with empty caches."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import intraslice_core
from intraslice_core.device import release_memory, unbound_environment
from intraslice_core.errors import CompressionCancelledError, IntraSliceError
from intraslice_core.progress import CancellationCheck
from intraslice_core.substeps import report_substep

PACKAGES_DIRECTORY = Path(intraslice_core.__file__).resolve().parents[1]
"""Directory that holds our packages, for programs that import them."""

STEP = "step: "
"""Beginning of a line with a sub-step in the output of a program."""
_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class CleanProcess:
    """Program to run once, with JSON input and output.

    Its command line is `arguments`, the path of the request file, the path of the reply file, and
    `extra_arguments`. Lines of its output that begin with `STEP` are sub-steps of the run.
    """

    program: str
    arguments: Sequence[str]
    make_error: Callable[[str], IntraSliceError]
    """Function that makes the error to raise from a reason of one line."""
    extra_arguments: Sequence[str] = ()

    def run(self, request: Any, should_cancel: CancellationCheck) -> Any:
        """Run the program and return its reply.

        Memory that this process does not use is returned first: the program loads whole models, on
        the same device.

        Raises:
            IntraSliceError: made by `make_error`, if the program fails or exceeds the time limit.
            CompressionCancelledError: if the run is cancelled; the process is ended.
        """
        release_memory()
        with tempfile.TemporaryDirectory(prefix="intraslice-process-") as folder:
            directory = Path(folder)
            request_file, reply_file, log = (
                directory / name for name in ("request", "reply", "log")
            )
            request_file.write_text(json.dumps(request))
            with log.open("wb") as stream:
                process = self._start(directory, [str(request_file), str(reply_file)], stream)
                self._wait(process, should_cancel, log)
            if process.returncode != 0:
                lines = _other_lines(log)
                raise self.make_error(lines[-1] if lines else f"exit code {process.returncode}")
            return json.loads(reply_file.read_text())

    def _start(
        self, directory: Path, files: Sequence[str], log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start the program in the directory, which also serves as its empty cache."""
        command = [self.program, *self.arguments, *files, *self.extra_arguments]
        return subprocess.Popen(
            [sys.executable, "-I", *command],
            cwd=directory,
            env={**unbound_environment(), "HF_HOME": str(directory), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def _wait(
        self, process: subprocess.Popen[bytes], should_cancel: CancellationCheck, log: Path
    ) -> None:
        """Wait for the end, a cancellation or the time limit; never leave the process running."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        steps = _Steps(log)
        try:
            while process.poll() is None:
                steps.report()
                if should_cancel():
                    raise CompressionCancelledError("cancelled")
                if time.monotonic() > deadline:
                    raise self.make_error(
                        f"the process did not finish within {_TIMEOUT_SECONDS:.0f} seconds"
                    )
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


class _Steps:
    """Sub-steps in a growing log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0

    def report(self) -> None:
        """Report the last sub-step that was written since the last call."""
        with self._log.open("rb") as stream:
            stream.seek(self._read)
            complete, _, _ = stream.read().rpartition(b"\n")
        self._read += len(complete)
        lines = complete.decode(errors="replace").splitlines()
        steps = [line for line in lines if line.startswith(STEP)]
        if steps:
            report_substep(steps[-1].removeprefix(STEP))


def _other_lines(log: Path) -> list[str]:
    """Return the lines of a log that are no sub-steps."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return [line for line in lines if not line.startswith(STEP)]
