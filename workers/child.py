"""One job in a process of its own: engine events out, a verified checkpoint on disk.

Started as `python -m workers.child PARENT_PID`; the request comes on stdin, messages go to the
original stdout. Memory returns with the process, and the system's killer takes only this one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from types import FrameType
from typing import BinaryIO

from app.telemetry import configure_logging, get_logger
from app.telemetry.traces import configure_tracing, span, stop_tracing
from intraslice_core.config import FrozenModel
from intraslice_core.errors import IntraSliceError, NumericalError
from intraslice_core.progress import ProgressEvent, Stage
from workers.failures import INTERNAL, OUT_OF_MEMORY
from workers.messages import (
    ChildRequest,
    ChildTelemetry,
    FailedMessage,
    FinishedMessage,
    LayerSavedMessage,
    ProgressMessage,
    encode,
)
from workers.observation import StageSpans

_PR_SET_PDEATHSIG = 1
_ENGINE_SHARE = 0.95
"""Of the whole job; the rest is the upload."""
_log = get_logger(__name__)


class Child:
    """Runs one request and reports on it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._stop = threading.Event()
        self._stage: Stage | None = None
        self._spans = StageSpans()

    def request_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def run(self, request: ChildRequest) -> None:
        """Say what came of it."""
        with span("engine", parent=request.telemetry.traceparent):
            outcome = self._outcome(request)
            self._spans.enter(None)
        # Before the last word, because our parent ends us as soon as it has heard it.
        stop_tracing()
        self._send(outcome)

    def _outcome(self, request: ChildRequest) -> FinishedMessage | FailedMessage:
        """Exceptions end here, as messages."""
        try:
            return FinishedMessage(report=self._compress(request))
        except IntraSliceError as error:
            return self._failure(error)
        except MemoryError:
            return self._plain_failure(OUT_OF_MEMORY, "the process ran out of memory")
        except Exception as error:
            _log.exception("engine_crashed")
            return self._plain_failure(INTERNAL, f"{type(error).__name__}: {error}")

    def _compress(self, request: ChildRequest) -> dict[str, object]:
        # torch comes in here: a wrong request or an early stop costs nothing.
        from intraslice_core.cache import LayerCheckpoints, SharedFiles
        from intraslice_core.pipeline import compress_model

        place, kept = request.shared, request.checkpoints
        report = compress_model(
            request.model,
            request.checkpoint,
            request.compression,
            evaluation=request.evaluation,
            limits=request.limits,
            work_dir=request.scratch,
            shared=None if place is None else SharedFiles(**dict(place)),
            checkpoints=None
            if kept is None
            else LayerCheckpoints(**dict(kept), on_saved=self._on_layer_saved),
            on_progress=self._on_progress,
            should_cancel=self._stop.is_set,
        )
        dumped: dict[str, object] = report.model_dump(mode="json")
        return dumped

    def _on_progress(self, event: ProgressEvent) -> None:
        self._stage = event.stage
        self._spans.enter(event.stage)
        scaled = event.model_copy(update={"fraction": event.fraction * _ENGINE_SHARE})
        self._send(ProgressMessage(event=scaled))

    def _on_layer_saved(self, name: str) -> None:
        self._send(LayerSavedMessage(name=name))

    def _failure(self, error: IntraSliceError) -> FailedMessage:
        place = error if isinstance(error, NumericalError) else None
        return FailedMessage(
            code=error.code,
            message=error.message,
            hint=error.hint,
            field=error.field,
            layer=place and place.layer,
            module=place and place.module,
            stage=self._stage,
        )

    def _plain_failure(self, code: str, message: str) -> FailedMessage:
        return FailedMessage(code=code, message=message, stage=self._stage)

    def _send(self, message: FrozenModel) -> None:
        self._out.write(encode(message))
        self._out.flush()


def die_with(parent: int) -> None:
    """Ask the kernel to kill us when the worker dies; it may have died already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _speak(telemetry: ChildTelemetry) -> None:
    # JSON in any case: the worker reads the lines and writes them in its own form.
    configure_logging(telemetry.log_level, fixed={"process": "child", **telemetry.context})
    configure_tracing(telemetry.traces_url, "intraslice-child")
    _log.info("child_started")


def main() -> None:
    die_with(int(sys.argv[1]))
    # Libraries print to stdout; keep the channel for ourselves and send their words to the log.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    child = Child(channel)
    signal.signal(signal.SIGTERM, child.request_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = ChildRequest.model_validate_json(sys.stdin.buffer.read())
    _speak(request.telemetry)
    child.run(request)


if __name__ == "__main__":
    main()
