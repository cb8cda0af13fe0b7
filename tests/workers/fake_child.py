"""Fake child process: sends the messages of `workers.messages`, without the engine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from intraslice_core.parent_process import die_with
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.reports.schema import REPORT_FILE
from tests.app.stored_report import REPORT
from workers.messages import (
    ChildRequest,
    FailedMessage,
    FinishedMessage,
    ProgressMessage,
    encode,
)


def send(message: ProgressMessage | FinishedMessage | FailedMessage) -> None:
    os.write(1, encode(message))


def main() -> None:
    behaviour, parent = sys.argv[1], int(sys.argv[2])
    die_with(parent)
    request = ChildRequest.model_validate_json(sys.stdin.buffer.read())
    Path(request.checkpoint).with_name("pid").write_text(str(os.getpid()))
    event = ProgressEvent(
        stage=Stage.COMPRESS, message="layer 1/2", fraction=0.4, layer=0, layers=2
    )
    send(ProgressMessage(event=event))
    BEHAVIOURS[behaviour](request)


def finish(request: ChildRequest, more: Mapping[str, str] = MappingProxyType({})) -> None:
    request.checkpoint.mkdir()
    for name, text in more.items():
        (request.checkpoint / name).write_text(text)
    (request.checkpoint / "config.json").write_text("{}")
    (request.checkpoint / "model.safetensors").write_bytes(b"weights")
    send(FinishedMessage(report=REPORT))


def finish_with_report(request: ChildRequest) -> None:
    """Finish like the engine, whose checkpoints contain the report."""
    finish(request, {REPORT_FILE: json.dumps(REPORT)})


def tell_devices(request: ChildRequest) -> None:
    """Write the GPUs that this process sees into the data directory."""
    (work,) = (place for place in request.scratch.parents if place.name == "work")
    (work.parent / "visible-devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "-"))
    finish(request)


def finish_on_signal_file(request: ChildRequest) -> None:
    while not request.checkpoint.with_name("go").exists():
        time.sleep(0.02)
    finish(request)


def fail(request: ChildRequest) -> None:
    send(
        FailedMessage(
            code="numerical",
            message=f"singular in {request.scratch}/model, see the log",
            layer=1,
            module="mlp",
            stage=Stage.COMPRESS,
        )
    )


def exceed_device(_request: ChildRequest) -> None:
    send(
        FailedMessage(
            code="out_of_device_memory",
            message="the device has too little memory",
            field="compression.calibration.sequence_length",
            stage=Stage.COMPRESS,
        )
    )


def wait_for_stop(_request: ChildRequest) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    while not stopped:
        time.sleep(0.02)
    send(FailedMessage(code="cancelled", message="the compression was cancelled"))


def ignore_stop(_request: ChildRequest) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def be_killed(_request: ChildRequest) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash(_request: ChildRequest) -> None:
    sys.stderr.write("some output\nSegmentation something\n")
    sys.stderr.flush()
    os._exit(7)


def babble(request: ChildRequest) -> None:
    os.write(1, b'{"kind": "progr\nnot json\n')
    finish(request)


BEHAVIOURS = {
    "finish": finish,
    "finish_with_report": finish_with_report,
    "finish_on_signal_file": finish_on_signal_file,
    "tell_devices": tell_devices,
    "fail": fail,
    "exceed_device": exceed_device,
    "wait_for_stop": wait_for_stop,
    "ignore_stop": ignore_stop,
    "be_killed": be_killed,
    "crash": crash,
    "babble": babble,
}

if __name__ == "__main__":
    main()
