"""The child process of one generation: loads one model after the other, and continues the prompt.

Started as `python -m workers.generation_child PARENT_PID`. There is nothing to save, so the worker
kills it to stop it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from app.domain.generation import Answer, PlaygroundModel
from app.telemetry import get_logger
from app.telemetry.traces import span, stop_tracing
from intraslice_core.config import FrozenModel
from intraslice_core.errors import IntraSliceError
from intraslice_core.parent_process import die_with
from workers.child import configure_telemetry, message_channel
from workers.failures import INTERNAL, OUT_OF_MEMORY
from workers.messages import AnswerMessage, FailedMessage, GenerationInput, PromptedModel, encode

_log = get_logger(__name__)


def run(generation: GenerationInput, send: Callable[[FrozenModel], None]) -> None:
    """Send the answer of each model, or the reason why there is none."""
    with span("generation", parent=generation.telemetry.traceparent):
        for prompted in generation.models:
            outcome = _outcome(generation, prompted)
            send(outcome)
            if isinstance(outcome, FailedMessage):
                break
    stop_tracing()


def _outcome(generation: GenerationInput, prompted: PromptedModel) -> AnswerMessage | FailedMessage:
    """Ask one model; turn every exception into a message, which never quotes the prompt."""
    try:
        return AnswerMessage(answer=_answer(generation, prompted))
    except IntraSliceError as error:
        return FailedMessage(
            code=error.code, message=error.message, hint=error.hint, field=error.field
        )
    except MemoryError:
        return FailedMessage(code=OUT_OF_MEMORY, message="the process ran out of memory")
    except Exception as error:
        # Without its text, which may quote the prompt.
        kind = type(error).__name__
        _log.error("generation_crashed", error=kind, model=prompted.model)
        return FailedMessage(code=INTERNAL, message=f"{kind} in the engine")


def _answer(generation: GenerationInput, prompted: PromptedModel) -> Answer:
    # Imported here, so that an import that fails becomes a message.
    from intraslice_core.checkpoints.sources import open_model
    from intraslice_core.device import release_memory
    from intraslice_core.evaluation.generation import Decoding, continue_prompt

    directory = Path(prompted.place)
    if prompted.model is PlaygroundModel.DENSE:
        directory = open_model(prompted.place, generation.scratch, generation.limits)
    decoding = Decoding(
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        seed=generation.seed,
    )
    continuation = continue_prompt(
        directory, generation.prompt, decoding, dtype=generation.dtype, device=generation.device
    )
    # The next model needs the memory of this one.
    release_memory()
    return Answer(
        model=prompted.model,
        text=continuation.text,
        finish_reason="stop" if continuation.stopped else "length",
        prompt_tokens=continuation.prompt_tokens,
        new_tokens=continuation.new_tokens,
        seconds=continuation.seconds,
        tokens_per_second=continuation.new_tokens / max(continuation.seconds, 1e-9),
        load_seconds=continuation.load_seconds,
    )


def _sender(channel: BinaryIO) -> Callable[[FrozenModel], None]:
    def send(message: FrozenModel) -> None:
        channel.write(encode(message))
        channel.flush()

    return send


def main() -> None:
    die_with(int(sys.argv[1]))
    send = _sender(message_channel())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    generation = GenerationInput.model_validate_json(sys.stdin.buffer.read())
    configure_telemetry(generation.telemetry)
    run(generation, send)


if __name__ == "__main__":
    main()
