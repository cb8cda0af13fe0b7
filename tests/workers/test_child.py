"""The child's own side: whatever happens, it says so in one message."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from intraslice_core import pipeline
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import NumericalError
from workers.child import Child
from workers.messages import ChildRequest, FailedMessage, decode


def request(tmp_path: Path, model: str = "/no/such/model") -> ChildRequest:
    return ChildRequest(
        model=model,
        checkpoint=tmp_path / "checkpoint",
        scratch=tmp_path,
        compression=CompressionConfig(),
        evaluation=None,
    )


def last_message(out: io.BytesIO) -> FailedMessage:
    message = decode(out.getvalue().splitlines()[-1])
    assert isinstance(message, FailedMessage)
    return message


def test_engine_errors_keep_their_code_and_field(tmp_path: Path) -> None:
    out = io.BytesIO()
    Child(out).run(request(tmp_path))
    message = last_message(out)
    assert (message.code, message.field, message.stage) == ("model_not_found", "model", "load")


def test_stop_before_the_start_is_a_cancellation(tmp_path: Path) -> None:
    out = io.BytesIO()
    child = Child(out)
    child.request_stop(signal.SIGTERM, None)
    child.run(request(tmp_path))
    assert last_message(out).code == "cancelled"


@pytest.mark.parametrize(
    ("error", "code", "layer"),
    [
        (NumericalError("singular", layer=3, module="mlp"), "numerical", 3),
        (MemoryError(), "out_of_memory", None),
        (ValueError("a bug"), "internal_error", None),
    ],
)
@pytest.mark.usefixtures("capsys")
def test_any_exception_becomes_a_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
    layer: int | None,
) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "compress_model", broken)
    out = io.BytesIO()
    Child(out).run(request(tmp_path))
    message = last_message(out)
    assert (message.code, message.layer) == (code, layer)


def test_child_of_another_parent_does_not_begin() -> None:
    command = [sys.executable, "-P", "-m", "workers.child", "1"]
    done = subprocess.run(command, input=b"{}", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
