"""Encoding and decoding of messages."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from intraslice_core.progress import ProgressEvent, Stage
from workers.messages import FailedMessage, FinishedMessage, ProgressMessage, decode, encode


@pytest.mark.parametrize(
    "message",
    [
        ProgressMessage(event=ProgressEvent(stage=Stage.LOAD, message="a\nb ☃", fraction=0.1)),
        FinishedMessage(report={"layers": [1, 2], "text": "x\ny"}),
        FailedMessage(code="bad_model", message="no", layer=3),
    ],
)
def test_messages_survive_the_pipe(
    message: ProgressMessage | FinishedMessage | FailedMessage,
) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


def test_unknown_messages_are_rejected() -> None:
    with pytest.raises(ValidationError):
        decode(b'{"kind": "surprise"}')
