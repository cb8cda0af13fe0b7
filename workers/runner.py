"""One attempt at a claimed job, on the worker's side; never imports torch."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from app.domain.errors import (
    TRANSIENT_ERRORS,
    InvalidRequestError,
    LeaseLostError,
    ServiceError,
    StoreUnavailableError,
)
from app.domain.job import JobError, JobRecord, JobRequest
from app.domain.lifecycle import TERMINAL
from app.domain.worker import DeviceChoice, RequiredMemory, Requirement, Slot
from app.services import claims, estimates, fleet, publication, sweeps, upload_contents, uploads
from app.services.admission import AdmittedJob, admit
from app.services.resources import Resources
from app.telemetry import get_logger, metrics
from app.telemetry.traces import span
from intraslice_core.progress import ProgressEvent, Stage, heartbeat, remaining_range
from workers import failures
from workers.child_process import ChildProcess
from workers.devices import place
from workers.layer_mirror import LayerMirror
from workers.lease_renewal import JobLease
from workers.log_journal import LogJournal
from workers.messages import (
    ChildMessage,
    ChildRequest,
    FailedMessage,
    FinishedMessage,
    LayerSavedMessage,
    ProgressMessage,
    ResumeStateSettings,
    StatisticsCacheSettings,
)
from workers.progress_journal import ProgressJournal
from workers.telemetry import child_telemetry, count_end, observe_attempt

_POLL_SECONDS = 0.2
_STARTING = "starting worker process"
_STORE_PATIENCE_SECONDS = 600.0
"""Longest outage of the store that an attempt outlasts."""
_LAYERS = "layers"
_SPEEDS = "stage-speeds.json"
"""Name of the file with the speeds of earlier jobs on this machine."""
_log = get_logger(__name__)

StartChild = Callable[[ChildRequest, Path], ChildProcess]
_Result = TypeVar("_Result")


class _StoppedError(Exception):
    """The attempt must end: cancelled, paused, lease lost, or the worker stops."""


def run_job(
    resources: Resources,
    job: JobRecord,
    stopping: threading.Event,
    start_child: StartChild = ChildProcess,
    slots: Sequence[Slot] = (),
) -> JobRecord | None:
    """Run a claimed job until it ends.

    Args:
        resources: the process's resources.
        job: the job, whose lease this worker has.
        stopping: set when the worker stops; the job then returns to the queue.
        start_child: starts the engine process.
        slots: the job's places, one for each of its devices; none for the default device.

    Returns:
        The job in its new state; None if another worker took it over.
    """
    with observe_attempt(job):
        return _run_attempt(Attempt(resources, job, stopping, start_child, slots), job)


def _run_attempt(attempt: Attempt, job: JobRecord) -> JobRecord | None:
    _log.info("job_claimed", job_id=job.id, attempt=job.attempt, token=job.fencing_token)
    try:
        ended = attempt.run()
    except LeaseLostError:
        metrics.LEASES_LOST.inc()
        _log.warning("lease_lost", job_id=job.id, token=job.fencing_token)
        attempt.discard_files()
        return None
    if ended.state in TERMINAL:
        count_end(ended)
        attempt.discard_other_files()
    _log.info("job_released", job_id=job.id, state=ended.state)
    return ended


class Attempt:
    """One attempt at a job."""

    def __init__(
        self,
        resources: Resources,
        job: JobRecord,
        stopping: threading.Event,
        start_child: StartChild,
        slots: Sequence[Slot] = (),
    ) -> None:
        self._resources = resources
        self._job = job
        self._stopping = stopping
        self._start_child = start_child
        self._slots = slots
        self._placement = place(job, slots)
        self._started = time.monotonic()
        self._upload_started: float | None = None
        self._lease_renewal = JobLease(resources, job.lease)
        self._directory = work_directory(resources, job.id, job.fencing_token)
        self._journal = ProgressJournal(resources, job)
        self._log_journal = LogJournal(resources, job)
        self._mirror = LayerMirror(resources, job, layers_directory(resources, job.id))

    def run(self) -> JobRecord:
        """Run the job and record its outcome.

        Raises:
            LeaseLostError: if another worker owns the job.
        """
        with self._lease_renewal:
            try:
                return self._run()
            except _StoppedError:
                return self._finish_stopped()
            except LeaseLostError:
                # Publication was rejected: the job may still be ours, but cancelled.
                return self._finish_stopped()
            except ServiceError as error:
                stage = self._journal.stage
                failure = failures.job_error(error.code, error.message, stage=stage)
                return self._finish_failed(failure)
            except Exception as error:
                _log.exception("job_crashed", job_id=self._job.id)
                message = f"{type(error).__name__} in the worker"
                return self._finish_failed(failures.job_error(failures.INTERNAL, message))
            finally:
                self._mirror.drop()
                self._journal.close()
                shutil.rmtree(self._directory, ignore_errors=True)

    def discard_files(self) -> None:
        """Remove the files that this attempt has uploaded; those of other attempts stay."""
        self._clean_up(lambda: publication.discard_attempt(self._resources, self._job))

    def discard_other_files(self) -> None:
        """Remove the files that only further attempts would need, after the job's end."""
        self._clean_up(lambda: publication.discard_other_attempts(self._resources, self._job))
        shutil.rmtree(self._mirror.directory, ignore_errors=True)

    def _run(self) -> JobRecord:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._journal.prepare(_STARTING)
        try:
            admitted = self._admit()
        except InvalidRequestError as error:
            return self._finish_failed(failures.admission_error(error))
        self._journal.prepare(_STARTING)
        self._outlast_outage(self._mirror.start)
        outcome = self._run_child(admitted)
        if isinstance(outcome, JobError):
            return self._finish_failed(self._redacted(outcome))
        return self._publish(outcome.report)

    def _publish(self, report: dict[str, Any]) -> JobRecord:
        checkpoint = self._directory / "checkpoint"
        with span("upload"), heartbeat(self._journal.repeat):
            files = self._outlast_outage(
                lambda: publication.upload(
                    self._resources, self._job, checkpoint, report, self._on_upload
                )
            )
        lease = self._job.lease
        job = self._persist(lambda: publication.publish(self._resources, lease, files, report))
        self._record_run(report)
        return job

    def _record_run(self, report: dict[str, Any]) -> None:
        """Record the durations for estimates; a failure does not matter to the job."""
        if report.get("resumed_layers"):
            return  # the durations cover the remaining layers only
        try:
            estimates.record_run(self._resources, self._job, report, self._journal.close())
        except ServiceError as error:
            _log.warning("durations_not_recorded", job_id=self._job.id, code=error.code)
        except Exception:
            # The job has succeeded: the attempt must not end as one that has crashed.
            _log.exception("durations_not_recorded", job_id=self._job.id)

    def _admit(self) -> AdmittedJob:
        """Check the sources again: links may have changed, and settings differ between machines."""
        job = self._job
        # The claim has chosen the device; earlier releases allowed names that are rejected now.
        compression = job.compression.model_copy(update={"device": DeviceChoice.AUTO.value})
        request = JobRequest(model=job.model, compression=compression, evaluation=job.evaluation)
        self._outlast_outage(
            lambda: upload_contents.fetch(
                self._resources, job.project_id, request, self._before_part
            )
        )
        locate = uploads.locator(self._resources, job.project_id)
        return admit(self._resources.settings, request, locate)

    def _run_child(self, admitted: AdmittedJob) -> FinishedMessage | JobError:
        scratch = self._directory / "scratch"
        scratch.mkdir()
        request = ChildRequest(
            model=admitted.model,
            checkpoint=self._directory / "checkpoint",
            scratch=scratch,
            compression=admitted.compression.model_copy(update={"device": self._placement.device}),
            evaluation=admitted.evaluation,
            telemetry=child_telemetry(self._resources, self._job),
            limits=self._resources.settings.model_limits,
            statistics_cache=statistics_cache(self._resources, self._job),
            resume_state=ResumeStateSettings(
                directory=self._mirror.directory,
                hidden_states_every_seconds=self._resources.settings.resume_state_seconds,
            ),
            speeds=self._resources.settings.data_dir / _SPEEDS,
            jobs_at_once=self._slots[0].device.jobs_at_once if self._slots else 1,
            visible_devices=self._placement.visible_devices,
        )
        child = self._start_child(request, self._directory / "child.log")
        try:
            return self._relay_messages(child)
        finally:
            child.kill()
            # Before the outcome is recorded, which ends the lease and the job's event stream.
            self._log_journal.write(child, last=True)

    def _relay_messages(self, child: ChildProcess) -> FinishedMessage | JobError:
        """Handle messages until the child finishes, fails, exits or is stopped."""
        stopped_at: float | None = None
        while not child.ended:
            outcome = self._handle(child.next_message(_POLL_SECONDS))
            self._log_journal.write(child)
            if outcome is not None:
                return outcome
            if self._lease_renewal.lost:
                raise _StoppedError
            if self._is_overdue():
                return claims.timeout_error(self._job)
            if stopped_at is None and self._must_stop():
                child.request_stop()
                stopped_at = time.monotonic()
            # A pause may become a cancellation or a shutdown, which give less time.
            if stopped_at is not None and time.monotonic() - stopped_at >= self._grace_seconds():
                raise _StoppedError
        if stopped_at is not None:
            raise _StoppedError
        error = failures.exit_error(child.exit_code or 0, self._journal.stage, child.last_line())
        metrics.CHILD_DEATHS.labels(error.code).inc()
        return error

    def _handle(self, message: ChildMessage | None) -> FinishedMessage | JobError | None:
        """Handle a message; return the outcome if the message is one."""
        if isinstance(message, ProgressMessage):
            self._journal.write(message.event)
        elif isinstance(message, LayerSavedMessage):
            self._mirror.add(message.name)
        elif isinstance(message, FailedMessage):
            return self._failure(message)
        elif isinstance(message, FinishedMessage):
            return message
        return None

    def _grace_seconds(self) -> float:
        """Return the time in which the child stops: that of a pause, of a shutdown or of others."""
        settings = self._resources.settings
        if self._stopping.is_set():
            return settings.drain_seconds
        renewal = self._lease_renewal
        paused = renewal.pause_requested and not renewal.cancel_requested
        return settings.pause_seconds if paused else settings.child_grace_seconds

    def _failure(self, message: FailedMessage) -> JobError:
        if message.code == failures.CANCELLED:
            raise _StoppedError
        fields = message.model_dump(exclude={"kind"})
        return JobError(**fields, retryable=message.code in failures.RETRYABLE)

    def _redacted(self, error: JobError) -> JobError:
        """Return the engine's error without secrets and directories of this machine."""
        redact = self._log_journal.redaction
        texts = {"message": redact(error.message), "hint": error.hint and redact(error.hint)}
        return error.model_copy(update=texts)

    def _raise_if_stopped(self) -> None:
        if self._must_stop() or self._lease_renewal.lost:
            raise _StoppedError

    def _before_part(self) -> None:
        self._raise_if_stopped()
        self._journal.prepare("fetching uploads")

    def _on_upload(self, message: str, done: float) -> None:
        self._raise_if_stopped()
        now = time.monotonic()
        self._upload_started = self._upload_started or now
        begin = self._journal.engine_fraction
        event = ProgressEvent(
            stage=Stage.PUBLISH, message=message, fraction=begin + (1.0 - begin) * done
        )
        if done:
            elapsed = now - self._upload_started
            left = elapsed * (1.0 - done) / done
            low, high = remaining_range(left, elapsed + left)
            times = {"eta_seconds": left, "eta_seconds_low": low, "eta_seconds_high": high}
            event = event.model_copy(update=times)
        self._journal.write(event)

    def _must_stop(self) -> bool:
        renewal = self._lease_renewal
        return renewal.cancel_requested or renewal.pause_requested or self._stopping.is_set()

    def _is_overdue(self) -> bool:
        limit = self._job.max_runtime_s
        return limit is not None and time.monotonic() - self._started > limit

    def _finish_stopped(self) -> JobRecord:
        """Cancel, pause or requeue the job, whichever was requested."""
        self._mirror.flush()
        self.discard_files()
        lease = self._job.lease
        if self._lease_renewal.cancel_requested:
            return self._persist(lambda: claims.finish_cancel(self._resources, lease))
        if self._lease_renewal.pause_requested:
            return self._persist(lambda: claims.finish_pause(self._resources, lease))
        return self._persist(lambda: claims.requeue_job(self._resources, lease, None))

    def _finish_failed(self, error: JobError) -> JobRecord:
        self._mirror.flush()
        self.discard_files()
        lease = self._job.lease
        if failures.should_retry(self._job, error):
            return self._persist(
                lambda: claims.requeue_job(
                    self._resources, lease, error, gpu_bytes=self._exceeded_bytes(error)
                )
            )
        return self._persist(lambda: claims.fail_job(self._resources, lease, error))

    def _exceeded_bytes(self, error: JobError) -> int | None:
        """Return the least memory of another GPU after this one was too small.

        None after other errors, and if no registered worker has a device to move the job to.
        """
        if not self._slots or error.code != failures.OUT_OF_DEVICE_MEMORY:
            return None
        needed = self._slots[0].device.memory_bytes + 1
        memory = RequiredMemory(gpu_bytes=needed, host_bytes=self._job.host_bytes)
        requirement = Requirement.of(self._job.compression, memory)
        return needed if fleet.can_run(self._resources, requirement) else None

    def _persist(self, write: Callable[[], JobRecord]) -> JobRecord:
        """Write the outcome; retry while that cannot succeed yet and the lease is valid."""
        while True:
            try:
                return write()
            except TRANSIENT_ERRORS:
                if self._lease_renewal.lost:
                    raise LeaseLostError from None
                time.sleep(self._resources.settings.heartbeat_seconds)

    def _outlast_outage(self, use_store: Callable[[], _Result]) -> _Result:
        """Repeat while the store is unavailable, so that a short outage costs no attempt.

        Raises:
            StoreUnavailableError: if the outage is too long, or the store rejects the settings.
        """
        deadline = time.monotonic() + _STORE_PATIENCE_SECONDS
        while True:
            try:
                return use_store()
            except StoreUnavailableError as error:
                if error.rejected or time.monotonic() > deadline:
                    raise
                # The store's client limits its own warnings about the outage.
                _log.debug("job_waits_for_store", job_id=self._job.id, detail=error.message)
            self._raise_if_stopped()
            time.sleep(self._resources.settings.heartbeat_seconds)

    def _clean_up(self, action: Callable[[], None]) -> None:
        """Run the action; log a failure, since left-over objects only cost space."""
        try:
            action()
        except ServiceError as error:
            _log.warning("store_cleanup_failed", job_id=self._job.id, code=error.code)


def work_directory(resources: Resources, job_id: str, token: int) -> Path:
    """Return the directory of an attempt's files; `remove_stale_work` parses its name."""
    return resources.work_dir / f"{job_id}.{token}"


def layers_directory(resources: Resources, job_id: str) -> Path:
    """Return the directory of finished layers, shared by a job's attempts on this machine."""
    return resources.work_dir / f"{job_id}.{_LAYERS}"


def statistics_cache(resources: Resources, job: JobRecord) -> StatisticsCacheSettings | None:
    """Return the statistics cache of the job's sweep; None if it has none.

    It is on the machine's own disk: reading hidden states over a network takes longer than
    computing them.
    """
    settings = resources.settings
    if job.sweep_id is None or settings.shared_statistics_max_bytes == 0:
        return None
    return StatisticsCacheSettings(
        directory=resources.shared_dir / job.sweep_id,
        max_bytes=settings.shared_statistics_max_bytes,
    )


def remove_stale_statistics(resources: Resources) -> None:
    """Remove the statistics caches of sweeps that have ended."""
    shared = resources.shared_dir
    for directory in shared.iterdir() if shared.is_dir() else ():
        if not sweeps.is_unfinished(resources, directory.name):
            shutil.rmtree(directory, ignore_errors=True)


def remove_stale_work(resources: Resources) -> None:
    """Remove the directories of attempts and jobs that have ended."""
    work = resources.work_dir
    for directory in work.iterdir() if work.is_dir() else ():
        job_id, _, kind = directory.name.partition(".")
        if kind == _LAYERS:
            stale = claims.is_over(resources, job_id)
        else:
            stale = kind.isdecimal() and not claims.holds_lease(resources, job_id, int(kind))
        if stale:
            shutil.rmtree(directory, ignore_errors=True)
