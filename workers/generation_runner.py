"""One attempt at a claimed generation, on the worker's side; never imports torch."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from app.domain.artifact import ArtifactRecord
from app.domain.errors import (
    ArtifactNotFoundError,
    InvalidRequestError,
    LeaseLostError,
    PublicationError,
    ServiceError,
)
from app.domain.generation import GenerationError, PlaygroundModel
from app.domain.job import JobRequest
from app.domain.worker import FreeSlots
from app.services import generation_claims, upload_contents, uploads
from app.services.admission import admit_model
from app.services.generation_claims import ClaimedGeneration
from app.services.requirements import generation_bytes
from app.services.resources import Resources
from app.telemetry import get_logger, metrics
from app.telemetry.traces import current_traceparent, span
from intraslice_core.config import CompressionConfig
from intraslice_core.host_limit import host_memory_bytes
from workers import failures
from workers.child_process import ChildProcess
from workers.devices import Placement, place
from workers.generation_lease import GenerationLease
from workers.messages import (
    AnswerMessage,
    ChildMessage,
    ChildTelemetry,
    FailedMessage,
    GenerationInput,
    PromptedModel,
)

COMMAND = (sys.executable, "-P", "-m", "workers.generation_child")
_POLL_SECONDS = 0.1
_KIND = "generation-"
"""Prefix of the second part of an attempt's directory name."""
_UNUSED = (".gguf",)
"""Files of a checkpoint that generating does not read."""
_log = get_logger(__name__)


class GenerationProcess(Protocol):
    """Handle on the process of a generation."""

    def next_message(self, seconds: float) -> ChildMessage | None:
        """Return the next message; None if none arrives in time or the process has ended."""

    @property
    def ended(self) -> bool:
        """True if the process has exited and all its messages were returned."""

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative signal number, or None while it runs."""

    def last_line(self) -> str:
        """Return the last plain line on stderr."""

    def kill(self) -> None:
        """Kill the process and release its pipes."""


StartProcess = Callable[[GenerationInput, Path], GenerationProcess]
start_process: StartProcess = functools.partial(ChildProcess, command=COMMAND)


class _StoppedError(Exception):
    """The attempt must end: the worker stops, a job waits, or the claim is lost."""


class _FailedError(Exception):
    def __init__(self, error: GenerationError) -> None:
        super().__init__(error.message)
        self.error = error


def run_generation(
    resources: Resources,
    claimed: ClaimedGeneration,
    stopping: threading.Event,
    start: StartProcess = start_process,
    slots: FreeSlots | None = None,
) -> None:
    """Run a claimed generation until it ends.

    Args:
        resources: the process's resources.
        claimed: the generation, whose lease this worker has.
        stopping: set when the worker stops; the generation then returns to the queue.
        start: starts the process of the generation.
        slots: the slot that it was claimed for, the first one; None runs on the default device.
    """
    attributes = {"intraslice.job_id": claimed.job.id}
    with span("generation attempt", attributes=attributes):
        GenerationAttempt(resources, claimed, stopping, start, slots).run()


class GenerationAttempt:
    """One attempt at a generation."""

    def __init__(
        self,
        resources: Resources,
        claimed: ClaimedGeneration,
        stopping: threading.Event,
        start: StartProcess,
        slots: FreeSlots | None,
    ) -> None:
        self._resources = resources
        self._generation = claimed.generation
        self._job = claimed.job
        self._files = claimed.files
        self._claim = claimed.generation.claim
        self._stopping = stopping
        self._start = start
        self._slots = () if slots is None else slots.slots[:1]
        self._deadline = time.monotonic() + resources.settings.playground_max_seconds
        self._lease = GenerationLease(resources, self._claim, slots)
        self._directory = attempt_directory(resources, self._generation.id, self._claim.token)

    def run(self) -> None:
        """Run the generation and record its outcome."""
        log = _log.bind(generation_id=self._generation.id, job_id=self._job.id)
        log.info("generation_claimed", attempt=self._generation.attempt)
        try:
            with self._lease:
                outcome = self._outcome()
            log.info("generation_released", outcome=outcome)
        except LeaseLostError:
            log.info("generation_abandoned", effect="it was cancelled, deleted or claimed again")
        except ServiceError as error:
            # Its lease expires, and maintenance queues it once more.
            log.warning("generation_not_recorded", code=error.code)

    def _outcome(self) -> str:
        """Run the generation and record its outcome; return that in one word.

        Raises:
            LeaseLostError: if the generation is not this worker's any more.
        """
        try:
            self._run()
        except _StoppedError:
            if self._lease.lost:
                raise LeaseLostError from None
            return generation_claims.give_back(self._resources, self._claim).state
        except _FailedError as failed:
            return self._fail(failed.error)
        except LeaseLostError:
            raise
        except InvalidRequestError as error:
            admission = failures.admission_error(error)
            return self._fail(_error(admission.code, admission.message, hint=admission.hint))
        except ServiceError as error:
            return self._fail(_error(error.code, error.message))
        except Exception as error:
            # Without its text and frames, which may quote the prompt.
            kind = type(error).__name__
            _log.error("generation_crashed", generation_id=self._generation.id, error=kind)
            return self._fail(_error(failures.INTERNAL, f"{kind} in the worker"))
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
        return generation_claims.succeed(self._resources, self._claim).state

    def _fail(self, error: GenerationError) -> str:
        generation_claims.fail(self._resources, self._claim, error)
        return error.code

    def _run(self) -> None:
        """Run the process of the generation until every model has answered."""
        self._directory.mkdir(parents=True, exist_ok=True)
        placement = self._place()
        scratch = self._directory / "scratch"
        scratch.mkdir()
        generation = self._generation
        process_input = GenerationInput(
            prompt=generation.prompt,
            max_new_tokens=generation.max_new_tokens,
            temperature=generation.temperature,
            seed=generation.seed,
            models=tuple(self._prompted(model) for model in generation.models),
            scratch=scratch,
            dtype=self._job.compression.dtype,
            device=placement.device,
            limits=self._resources.settings.model_limits,
            telemetry=self._telemetry(),
            visible_devices=placement.visible_devices,
        )
        process = self._start(process_input, self._directory / "child.log")
        try:
            self._relay_answers(process)
        finally:
            process.kill()

    def _place(self) -> Placement:
        """Return the device of a job on one that needs this much: a GPU that fits, or the CPU."""
        job = self._job
        needed = generation_bytes(job, on_gpu=True)
        on_one = job.compression.model_copy(update={"devices": 1})
        sized = job.model_copy(update={"gpu_bytes": needed, "compression": on_one})
        placement = place(sized, self._slots)
        if placement.device != "cuda":
            _require_host_memory(generation_bytes(job, on_gpu=False))
        return placement

    def _prompted(self, model: PlaygroundModel) -> PromptedModel:
        place_of = {
            PlaygroundModel.DENSE: self._fetch_original,
            PlaygroundModel.COMPRESSED: self._fetch_checkpoint,
        }
        return PromptedModel(model=model, place=place_of[model]())

    def _fetch_original(self) -> str:
        """Return the reference of the original model; an upload is assembled on this machine."""
        resources, job = self._resources, self._job
        request = JobRequest(model=job.model, compression=CompressionConfig())
        upload_contents.fetch(resources, job.project_id, request, self._raise_if_stopped)
        locate = uploads.locator(resources, job.project_id)
        return admit_model(resources.settings, job.model, locate)

    def _fetch_checkpoint(self) -> str:
        """Return the directory of the files that the job has published, with verified hashes."""
        directory = self._directory / "checkpoint"
        files = [file for file in self._files if not file.name.endswith(_UNUSED)]
        if not files:
            raise ArtifactNotFoundError("the files of the job have been removed")
        for file in files:
            self._raise_if_stopped()
            self._fetch_file(file, directory / file.name)
        return str(directory)

    def _fetch_file(self, file: ArtifactRecord, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        store = self._resources.store
        local = store.local_path(file.key)
        if local is None:
            store.get_file(file.key, target)
        else:
            target.symlink_to(local)
        with target.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != file.sha256:
            raise PublicationError(f"{file.name} is not in the store as it was published")

    def _relay_answers(self, process: GenerationProcess) -> None:
        """Record answers until every model has answered."""
        answered = 0
        while answered < len(self._generation.models):
            # Read before the messages: a process that has ended may have left the last one.
            ended = process.ended
            message = process.next_message(_POLL_SECONDS)
            if isinstance(message, AnswerMessage):
                generation_claims.add_answer(self._resources, self._claim, message.answer)
                answered += 1
            elif isinstance(message, FailedMessage):
                raise _FailedError(
                    _error(message.code, message.message, field=message.field, hint=message.hint)
                )
            elif ended:
                exit_error = failures.exit_error(process.exit_code or 0, None, process.last_line())
                metrics.CHILD_DEATHS.labels(exit_error.code).inc()
                raise _FailedError(_error(exit_error.code, exit_error.message))
            else:
                self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self._stopping.is_set() or self._lease.lost or self._lease.job_waits:
            raise _StoppedError
        if time.monotonic() > self._deadline:
            raise _FailedError(generation_claims.timeout_error(self._resources))

    def _telemetry(self) -> ChildTelemetry:
        settings = self._resources.settings
        return ChildTelemetry(
            log_level=settings.log_level,
            context={
                "generation_id": self._generation.id,
                "job_id": self._job.id,
                "worker": self._claim.owner,
                "parent": str(os.getpid()),
            },
            traces_url=settings.traces_url,
            traceparent=current_traceparent(),
        )


def _error(
    code: str, message: str, *, field: str | None = None, hint: str | None = None
) -> GenerationError:
    return GenerationError(
        code=code,
        message=message,
        field=field,
        hint=hint,
        retryable=code in failures.RETRYABLE,
    )


def _require_host_memory(needed: int) -> None:
    """Raise before anything is loaded if this machine cannot hold the model."""
    available = host_memory_bytes()
    if needed > available:
        raise _FailedError(
            _error(
                failures.OUT_OF_MEMORY,
                f"the model needs {needed / 1e9:.1f} GB of memory, this machine has"
                f" {available / 1e9:.1f} GB",
                hint="start a worker with more memory",
            )
        )


def attempt_directory(resources: Resources, generation_id: str, token: int) -> Path:
    """Return the directory of an attempt's files; `remove_stale_generations` parses its name."""
    return resources.work_dir / f"{generation_id}.{_KIND}{token}"


def remove_stale_generations(resources: Resources) -> None:
    """Remove the directories of attempts whose worker was killed on this machine."""
    work = resources.work_dir
    for directory in work.glob(f"*.{_KIND}*") if work.is_dir() else ():
        generation_id, _, kind = directory.name.partition(".")
        token = kind.removeprefix(_KIND)
        if not (
            token.isdecimal()
            and generation_claims.holds_claim(resources, generation_id, int(token))
        ):
            shutil.rmtree(directory, ignore_errors=True)
