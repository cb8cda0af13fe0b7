"""One claimed job from start to end: the parent's side, without torch."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.domain.errors import (
    DatabaseUnavailableError,
    InvalidRequestError,
    LeaseLostError,
    ServiceError,
)
from app.domain.job import Job, JobError, JobRequest, Progress
from app.domain.lifecycle import TERMINAL
from app.services import claims, estimates, publication, sweeps, upload_contents, uploads
from app.services.admission import AdmittedJob, admit
from app.services.resources import Resources
from app.telemetry import get_logger, metrics
from app.telemetry.traces import span
from intraslice_core.progress import ProgressEvent, Stage
from workers import failures
from workers.child_process import ChildProcess
from workers.layer_mirror import LayerMirror
from workers.lease_renewal import LeaseRenewal
from workers.messages import (
    CheckpointPlace,
    ChildMessage,
    ChildRequest,
    FailedMessage,
    FinishedMessage,
    LayerSavedMessage,
    ProgressMessage,
    SharedPlace,
)
from workers.observation import StageClock, child_telemetry, count_end, observed

_POLL_SECONDS = 0.2
_PROGRESS_SECONDS = 0.5
_UPLOAD_BEGINS = 0.97
_LAYERS = "layers"
_log = get_logger(__name__)

StartChild = Callable[[ChildRequest, Path], ChildProcess]


class _StoppedError(Exception):
    """The job is not to be continued here: cancelled, lost, or the worker ends."""


def run_next_job(
    resources: Resources,
    owner: str,
    stopping: threading.Event,
    start_child: StartChild = ChildProcess,
) -> Job | None:
    """Claim the most urgent job and work on it until it ends.

    Args:
        resources: the servers.
        owner: this worker's name, for the lease.
        stopping: set when the worker is to end; the job then goes back to the queue.
        start_child: how the engine's process is started.

    Returns:
        The job as it was left; None if there was none to be had, or it was lost to another worker.
    """
    job = claims.claim_next_job(resources, owner)
    if job is None:
        return None
    with observed(job):
        return _run_claimed(JobRun(resources, job, stopping, start_child), job)


def _run_claimed(run: JobRun, job: Job) -> Job | None:
    _log.info("job_claimed", job_id=job.id, attempt=job.attempt, token=job.fencing_token)
    try:
        ended = run.execute()
    except LeaseLostError:
        metrics.LEASES_LOST.inc()
        _log.warning("lease_lost", job_id=job.id, token=job.fencing_token)
        run.discard()
        return None
    if ended.state in TERMINAL:
        count_end(ended)
        run.discard_others()
    _log.info("job_left", job_id=job.id, state=ended.state)
    return ended


class JobRun:
    """One attempt."""

    def __init__(
        self, resources: Resources, job: Job, stopping: threading.Event, start_child: StartChild
    ) -> None:
        self._resources = resources
        self._job = job
        self._stopping = stopping
        self._start_child = start_child
        self._began = time.monotonic()
        self._lease_renewal = LeaseRenewal(resources, job.lease)
        self._directory = work_directory(resources, job.id, job.fencing_token)
        self._journal = ProgressJournal(resources, job)
        self._mirror = LayerMirror(resources, job, layers_directory(resources, job.id))

    def execute(self) -> Job:
        """Work and write down how it ended.

        Raises:
            LeaseLostError: if the job belongs to somebody else by now.
        """
        with self._lease_renewal:
            try:
                return self._work()
            except _StoppedError:
                return self._conclude_stop()
            except LeaseLostError:
                # Publication was refused: the job may be ours still, but cancelled.
                return self._conclude_stop()
            except ServiceError as error:
                stage = self._journal.stage
                return self._conclude(failures.job_error(error.code, error.message, stage=stage))
            except Exception as error:
                _log.exception("job_crashed", job_id=self._job.id)
                message = f"{type(error).__name__} in the worker"
                return self._conclude(failures.job_error(failures.INTERNAL, message))
            finally:
                self._mirror.drop()
                self._journal.close()
                shutil.rmtree(self._directory, ignore_errors=True)

    def discard(self) -> None:
        """Remove what this attempt has uploaded; another attempt's files stay."""
        self._tidy(lambda: publication.discard_attempt(self._resources, self._job.lease))

    def discard_others(self) -> None:
        """Remove what no attempt will need, once the job has ended for good."""
        self._tidy(lambda: publication.discard_other_attempts(self._resources, self._job))
        shutil.rmtree(self._mirror.directory, ignore_errors=True)

    def _work(self) -> Job:
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            admitted = self._admit()
        except InvalidRequestError as error:
            return self._conclude(_refusal(error))
        self._mirror.start()
        outcome = self._run_child(admitted)
        if isinstance(outcome, JobError):
            return self._conclude(outcome)
        return self._publish(outcome.report)

    def _publish(self, report: dict[str, Any]) -> Job:
        checkpoint = self._directory / "checkpoint"
        with span("upload"):
            files = publication.upload(
                self._resources, self._job, checkpoint, report, self._before_upload
            )
        lease = self._job.lease
        job = self._persist(lambda: publication.publish(self._resources, lease, files, report))
        self._record_rates(report)
        return job

    def _record_rates(self, report: dict[str, Any]) -> None:
        """An estimate can do without them; the job is done."""
        if report.get("resumed_layers"):
            return  # the seconds are of the rest only
        try:
            estimates.record_rates(self._resources, self._job, report, self._journal.close())
        except ServiceError as error:
            _log.warning("rates_not_recorded", job_id=self._job.id, code=error.code)

    def _admit(self) -> AdmittedJob:
        """Asked again: links may have changed since, and settings differ between machines."""
        job = self._job
        request = JobRequest(
            model=job.model, compression=job.compression, evaluation=job.evaluation
        )
        upload_contents.fetch(self._resources, job.project_id, request, self._stop_if_asked)
        locate = uploads.locator(self._resources, job.project_id)
        return admit(self._resources.settings, request, locate)

    def _run_child(self, admitted: AdmittedJob) -> FinishedMessage | JobError:
        scratch = self._directory / "scratch"
        scratch.mkdir()
        request = ChildRequest(
            model=admitted.model,
            checkpoint=self._directory / "checkpoint",
            scratch=scratch,
            compression=admitted.compression,
            evaluation=admitted.evaluation,
            telemetry=child_telemetry(self._resources, self._job),
            limits=self._resources.settings.model_limits,
            shared=shared_place(self._resources, self._job),
            checkpoints=CheckpointPlace(
                directory=self._mirror.directory,
                streams_every_seconds=self._resources.settings.checkpoint_streams_seconds,
            ),
        )
        child = self._start_child(request, self._directory / "child.log")
        try:
            return self._listen(child)
        finally:
            child.kill()

    def _listen(self, child: ChildProcess) -> FinishedMessage | JobError:
        """Relay messages until the child has finished, failed, died or was stopped."""
        deadline: float | None = None
        while not child.ended:
            outcome = self._heed(child.next_message(_POLL_SECONDS))
            if outcome is not None:
                return outcome
            if self._lease_renewal.lost:
                raise _StoppedError
            if self._is_overdue():
                return claims.timeout_error(self._job)
            if deadline is None and self._must_stop():
                child.ask_to_stop()
                deadline = time.monotonic() + self._grace_seconds()
            if deadline is not None and time.monotonic() >= deadline:
                raise _StoppedError
        if deadline is not None:
            raise _StoppedError
        death = failures.death_error(child.exit_code or 0, self._journal.stage, child.last_words())
        metrics.CHILD_DEATHS.labels(death.code).inc()
        return death

    def _heed(self, message: ChildMessage | None) -> FinishedMessage | JobError | None:
        """Pass a message on; what came of the job, if that is what it says."""
        if isinstance(message, ProgressMessage):
            self._journal.write(message.event)
        elif isinstance(message, LayerSavedMessage):
            self._mirror.add(message.name)
        elif isinstance(message, FailedMessage):
            return self._failure(message)
        elif message is not None:
            return message
        return None

    def _grace_seconds(self) -> float:
        settings = self._resources.settings
        return settings.drain_seconds if self._stopping.is_set() else settings.child_grace_seconds

    def _failure(self, message: FailedMessage) -> JobError:
        if message.code == failures.CANCELLED:
            raise _StoppedError
        known = message.model_dump(exclude={"kind"})
        return JobError(**known, retryable=message.code in failures.RETRYABLE)

    def _stop_if_asked(self) -> None:
        if self._must_stop() or self._lease_renewal.lost:
            raise _StoppedError

    def _before_upload(self, index: int, files: int) -> None:
        self._stop_if_asked()
        fraction = _UPLOAD_BEGINS + (1.0 - _UPLOAD_BEGINS) * index / files
        self._journal.write(
            ProgressEvent(
                stage=Stage.PUBLISH,
                message=f"uploading file {index + 1}/{files}",
                fraction=fraction,
            )
        )

    def _must_stop(self) -> bool:
        renewal = self._lease_renewal
        return renewal.cancel_requested or renewal.pause_requested or self._stopping.is_set()

    def _is_overdue(self) -> bool:
        limit = self._job.max_runtime_s
        return limit is not None and time.monotonic() - self._began > limit

    def _conclude_stop(self) -> Job:
        """Cancelled, paused, or given back because the worker ends; as the database has it."""
        self._mirror.flush()
        self.discard()
        lease = self._job.lease
        if self._lease_renewal.cancel_requested:
            return self._persist(lambda: claims.finish_cancel(self._resources, lease))
        if self._lease_renewal.pause_requested:
            return self._persist(lambda: claims.finish_pause(self._resources, lease))
        return self._persist(lambda: claims.requeue_job(self._resources, lease, None))

    def _conclude(self, error: JobError) -> Job:
        self._mirror.flush()
        self.discard()
        lease = self._job.lease
        if failures.try_again(self._job, error):
            return self._persist(lambda: claims.requeue_job(self._resources, lease, error))
        return self._persist(lambda: claims.fail_job(self._resources, lease, error))

    def _persist(self, write: Callable[[], Job]) -> Job:
        """Write the outcome; wait for the database as long as the lease lasts."""
        while True:
            try:
                return write()
            except DatabaseUnavailableError:
                if self._lease_renewal.lost:
                    raise LeaseLostError from None
                time.sleep(self._resources.settings.heartbeat_seconds)

    def _tidy(self, action: Callable[[], None]) -> None:
        """Left-over objects cost space, not correctness; the next attempt removes them too."""
        try:
            action()
        except ServiceError as error:
            _log.warning("store_not_tidied", job_id=self._job.id, code=error.code)


class ProgressJournal:
    """Writes progress: every new stage and layer into the log, the rest now and then."""

    def __init__(self, resources: Resources, job: Job) -> None:
        self._resources = resources
        self._job = job
        self._logged: tuple[Stage, int | None] | None = None
        self._written = 0.0
        self._clock = StageClock()
        self.stage: Stage | None = None

    def close(self) -> dict[Stage, float]:
        """The attempt ends, and so does its last stage; the seconds each has taken."""
        self._clock.enter(None)
        return self._clock.seconds

    def write(self, event: ProgressEvent) -> None:
        """Show the event to clients.

        Raises:
            LeaseLostError: if the job belongs to somebody else now.
        """
        self.stage = event.stage
        self._clock.enter(event.stage)
        place = (event.stage, event.layer)
        news = place != self._logged or event.finished is not None
        if not news and time.monotonic() - self._written < _PROGRESS_SECONDS:
            return
        progress = Progress(**event.model_dump(exclude={"stage"}))
        try:
            claims.record_progress(
                self._resources, self._job.lease, event.stage, progress, log=news
            )
        except DatabaseUnavailableError:
            # Progress can be missed; the lease renewal decides whether to continue.
            _log.warning("progress_not_written", job_id=self._job.id)
            return
        self._logged, self._written = place, time.monotonic()


def work_directory(resources: Resources, job_id: str, token: int) -> Path:
    """Where one attempt keeps its files; named so that `remove_stale_work` can judge it."""
    return resources.settings.work_dir / f"{job_id}.{token}"


def layers_directory(resources: Resources, job_id: str) -> Path:
    """Where the attempts of a job on this machine keep finished layers, until the job has ended."""
    return resources.settings.work_dir / f"{job_id}.{_LAYERS}"


def shared_place(resources: Resources, job: Job) -> SharedPlace | None:
    """On this machine's disk: reading a stream back over a network takes longer than making it."""
    settings = resources.settings
    if job.sweep_id is None or settings.shared_statistics_max_bytes == 0:
        return None
    return SharedPlace(
        directory=settings.shared_dir / job.sweep_id,
        max_bytes=settings.shared_statistics_max_bytes,
    )


def remove_stale_shared(resources: Resources) -> None:
    """Remove what the jobs of ended sweeps have left for each other."""
    shared = resources.settings.shared_dir
    for directory in shared.iterdir() if shared.is_dir() else ():
        if not sweeps.is_unfinished(resources, directory.name):
            shutil.rmtree(directory, ignore_errors=True)


def remove_stale_work(resources: Resources) -> None:
    """Remove directories of attempts that nobody works on any more."""
    work = resources.settings.work_dir
    for directory in work.iterdir() if work.is_dir() else ():
        job_id, _, kind = directory.name.partition(".")
        if kind == _LAYERS:
            stale = claims.is_over(resources, job_id)
        else:
            stale = kind.isdecimal() and not claims.holds_lease(resources, job_id, int(kind))
        if stale:
            shutil.rmtree(directory, ignore_errors=True)


def _refusal(error: InvalidRequestError) -> JobError:
    first = error.fields[0]
    return JobError(
        code="source_not_allowed",
        message=f"{first.pointer}: {first.message}",
        field=first.pointer,
        hint="this worker's settings differ from the API's, or the files have moved",
    )
