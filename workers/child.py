"""The child process of one job: runs the engine and reports to the worker.

Started as `python -m workers.child PARENT_PID`. The request comes on stdin, messages go to the
original stdout. The process frees all memory at its end, and the kernel's out-of-memory killer ends
it instead of the worker.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from types import FrameType
from typing import BinaryIO

from app.telemetry import configure_logging, get_logger
from app.telemetry.traces import configure_tracing, span, stop_tracing
from intraslice_core.config import FrozenModel
from intraslice_core.errors import IntraSliceError, NumericalError
from intraslice_core.parent_process import die_with
from intraslice_core.progress import ProgressEvent, Stage, heartbeat
from workers.failures import INTERNAL, OUT_OF_MEMORY
from workers.memory_use import MemoryMeter
from workers.messages import (
    ChildRequest,
    ChildTelemetry,
    FailedMessage,
    FinishedMessage,
    LayerSavedMessage,
    ProgressMessage,
    encode,
)
from workers.telemetry import StageSpans

_LACKS_MEMORY = "the engine process ran out of memory"
_log = get_logger(__name__)
_NUMBER = re.compile(r"\d+")


class Child:
    """The engine run of one request."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._stage: Stage | None = None
        self._spans = StageSpans()
        self._steps: set[tuple[Stage, str]] = set()
        self._memory = MemoryMeter()

    def request_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def run(self, request: ChildRequest) -> None:
        """Run the engine and send the outcome."""
        with span("engine", parent=request.telemetry.traceparent):
            outcome = self._outcome(request)
            self._spans.enter(None)
        # Before the last message, because the worker kills this process once it has received it.
        stop_tracing()
        self._send(outcome)

    def _outcome(self, request: ChildRequest) -> FinishedMessage | FailedMessage:
        """Run the engine; turn every exception into a message."""
        try:
            return FinishedMessage(report=self._compress(request))
        except IntraSliceError as error:
            return self._engine_failure(error)
        except MemoryError:
            return self._failure(OUT_OF_MEMORY, _LACKS_MEMORY)
        except Exception as error:
            return self._unexpected(error)

    def _unexpected(self, error: Exception) -> FailedMessage:
        """Return the message of an error that the engine has not translated."""
        if isinstance(error, RuntimeError):
            from intraslice_core.device_memory import lacks_memory

            # torch raises a plain RuntimeError where host memory is short, not a MemoryError.
            if lacks_memory(error):
                return self._failure(OUT_OF_MEMORY, _LACKS_MEMORY)
        _log.exception("engine_crashed")
        return self._failure(INTERNAL, f"{type(error).__name__}: {error}")

    def _compress(self, request: ChildRequest) -> dict[str, object]:
        # Imported here: an invalid request or an early stop does not pay for torch.
        importing = ProgressEvent(stage=Stage.LOAD, message="importing the engine", fraction=0.0)
        self._on_progress(importing)
        with heartbeat(lambda: self._on_progress(importing)):
            from intraslice_core.host_limit import sharing_host
            from intraslice_core.pipeline import compress_model
            from intraslice_core.resume_state import ResumeState
            from intraslice_core.stage_speeds import StageSpeeds
            from intraslice_core.statistics_cache import StatisticsCache

        cache, resume_state = request.statistics_cache, request.resume_state
        with sharing_host(request.jobs_at_once):
            report = compress_model(
                request.model,
                request.checkpoint,
                request.compression,
                evaluation=request.evaluation,
                limits=request.limits,
                work_dir=request.scratch,
                speeds=None if request.speeds is None else StageSpeeds(file=request.speeds),
                uploads=True,
                statistics_cache=None if cache is None else StatisticsCache(**dict(cache)),
                resume_state=None
                if resume_state is None
                else ResumeState(**dict(resume_state), on_saved=self._on_layer_saved),
                on_progress=self._on_progress,
                should_cancel=self._stop.is_set,
            )
        dumped: dict[str, object] = report.model_dump(mode="json")
        return dumped

    def _on_progress(self, event: ProgressEvent) -> None:
        self._stage = event.stage
        self._spans.enter(event.stage)
        self._log_progress(event)
        self._send(ProgressMessage(event=event.model_copy(update=self._memory.fields())))

    def _log_progress(self, event: ProgressEvent) -> None:
        """Log every finished layer and the first time of every step; its progress is not logged."""
        if event.finished is not None:
            shape = event.finished.model_dump(exclude_none=True)
            _log.info("layer_finished", stage=event.stage.value, layers=event.layers, **shape)
            return
        # A sub-step follows a colon, and steps of different layers differ in their numbers.
        step = (event.stage, _NUMBER.sub("", event.message.partition(": ")[0]))
        if step not in self._steps:
            self._steps.add(step)
            _log.info("step", stage=event.stage.value, message=event.message)

    def _on_layer_saved(self, name: str) -> None:
        self._send(LayerSavedMessage(name=name))

    def _engine_failure(self, error: IntraSliceError) -> FailedMessage:
        numerical = error if isinstance(error, NumericalError) else None
        return FailedMessage(
            code=error.code,
            message=error.message,
            hint=error.hint,
            field=error.field,
            layer=numerical and numerical.layer,
            module=numerical and numerical.module,
            stage=self._stage,
        )

    def _failure(self, code: str, message: str) -> FailedMessage:
        return FailedMessage(code=code, message=message, stage=self._stage)

    def _send(self, message: FrozenModel) -> None:
        with self._sending:  # the engine's heartbeat sends from its own thread
            self._out.write(encode(message))
            self._out.flush()


def message_channel() -> BinaryIO:
    """Return the original stdout for messages, and send prints to the log.

    Libraries print to stdout.
    """
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return channel


def configure_telemetry(telemetry: ChildTelemetry) -> None:
    """Set up log and traces by the worker's settings."""
    # Always JSON: the worker parses the lines and writes them in its own format.
    configure_logging(telemetry.log_level, fixed={"process": "child", **telemetry.context})
    configure_tracing(telemetry.traces_url, "intraslice-child")
    _log.info("child_started")


def main() -> None:
    die_with(int(sys.argv[1]))
    child = Child(message_channel())
    signal.signal(signal.SIGTERM, child.request_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = ChildRequest.model_validate_json(sys.stdin.buffer.read())
    configure_telemetry(request.telemetry)
    child.run(request)


if __name__ == "__main__":
    main()
