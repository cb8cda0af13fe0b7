"""A program in a process that starts elsewhere: isolated, offline and with empty caches."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import intraslice_core
from intraslice_core.device import unbound_environment
from intraslice_core.errors import CompressionCancelledError, IntraSliceError
from intraslice_core.progress import CancellationCheck

OUR_PLACE = Path(intraslice_core.__file__).resolve().parents[1]
"""What holds our packages, for programs that are to find them."""

_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class CleanProcess:
    """A program, to be asked once.

    It is called with `arguments`, then the paths of a file with the question and of one for the
    answer, both JSON, then with `more`.
    """

    program: str
    arguments: Sequence[str]
    fails: Callable[[str], IntraSliceError]
    """The error to raise, from the reason in one line."""
    more: Sequence[str] = ()

    def ask(self, question: Any, should_cancel: CancellationCheck) -> Any:
        """Its answer.

        Raises:
            IntraSliceError: `fails`, if there is none.
            CompressionCancelledError: if asked to stop; the process is ended.
        """
        with tempfile.TemporaryDirectory(prefix="intraslice-process-") as folder:
            place = Path(folder)
            questions, answers, log = (place / name for name in ("question", "answer", "log"))
            questions.write_text(json.dumps(question))
            command = [self.program, *self.arguments, str(questions), str(answers), *self.more]
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    [sys.executable, "-I", *command],
                    cwd=place,
                    env={**unbound_environment(), "HF_HOME": folder, "HF_HUB_OFFLINE": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                )
                self._wait(process, should_cancel)
            if process.returncode != 0:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise self.fails(lines[-1] if lines else f"exit code {process.returncode}")
            return json.loads(answers.read_text())

    def _wait(self, process: subprocess.Popen[bytes], should_cancel: CancellationCheck) -> None:
        """Wait for its end, cancellation or the time limit; never leave it running."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        try:
            while process.poll() is None:
                if should_cancel():
                    raise CompressionCancelledError("cancelled")
                if time.monotonic() > deadline:
                    raise self.fails(f"no answer within {_TIMEOUT_SECONDS:.0f} seconds")
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
