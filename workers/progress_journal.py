"""Progress of an attempt on its way to the database, with fewer writes than the engine reports."""

from __future__ import annotations

import threading
import time

from app.domain.errors import TRANSIENT_ERRORS
from app.domain.job import JobRecord, Progress
from app.services import claims
from app.services.resources import Resources
from app.telemetry import get_logger
from intraslice_core.progress import LONGEST_PAUSE_SECONDS, ProgressEvent, Stage
from workers.telemetry import StageClock

_PROGRESS_SECONDS = 0.5
_log = get_logger(__name__)


class ProgressJournal:
    """Progress of an attempt: logs every new stage and compressed layer, throttles the rest."""

    def __init__(self, resources: Resources, job: JobRecord) -> None:
        self._resources = resources
        self._job = job
        self._logged: tuple[Stage, int | None] | None = None
        self._written = 0.0
        self._prepared: str | None = None
        self._last: ProgressEvent | None = None
        self._lock = threading.Lock()
        """Lock of the rows, which an upload and its heartbeat write from two threads."""
        self._clock = StageClock()
        self.stage: Stage | None = None
        self.engine_fraction = 0.0
        """Finished fraction of the job at the last event of the engine."""

    def close(self) -> dict[Stage, float]:
        """End the last stage; return the seconds of each."""
        self._clock.enter(None)
        return self._clock.seconds

    def prepare(self, message: str) -> None:
        """Publish a step before the engine's first one; its time counts for no stage.

        Raises:
            LeaseLostError: if another worker owns the job.
        """
        if message == self._prepared:
            return
        self.stage, self._prepared = Stage.LOAD, message
        self._record(ProgressEvent(stage=Stage.LOAD, message=message, fraction=0.0), log=True)

    def write(self, event: ProgressEvent) -> None:
        """Publish the event to clients.

        Raises:
            LeaseLostError: if another worker owns the job.
        """
        self.stage = event.stage
        if event.stage is not Stage.PUBLISH:
            self.engine_fraction = event.fraction
        self._clock.enter(event.stage)
        # Layers of other stages pass quickly, and several times.
        position = (event.stage, event.layer if event.stage is Stage.COMPRESS else None)
        is_logged = position != self._logged or event.finished is not None
        if not is_logged and time.monotonic() - self._written < _PROGRESS_SECONDS:
            return
        with self._lock:
            self._last = event
            if self._record(event, log=is_logged):
                self._logged, self._written = position, time.monotonic()

    def repeat(self) -> None:
        """Publish the last event again after a pause, as while the store is unavailable.

        Raises:
            LeaseLostError: if another worker owns the job.
        """
        with self._lock:
            pause = time.monotonic() - self._written
            if self._last is None or pause < LONGEST_PAUSE_SECONDS:
                return
            times = ("eta_seconds", "eta_seconds_low", "eta_seconds_high")
            left = {name: getattr(self._last, name) for name in times}
            later = {
                name: None if seconds is None else max(seconds - pause, 0.0)
                for name, seconds in left.items()
            }
            self._last = self._last.model_copy(update={**later, "finished": None})
            self._record(self._last, log=False)
            self._written = time.monotonic()

    def _record(self, event: ProgressEvent, *, log: bool) -> bool:
        """Write the event; return False if the database is away or the row stays locked."""
        progress = Progress(**event.model_dump(exclude={"stage"}))
        try:
            claims.record_progress(self._resources, self._job.lease, event.stage, progress, log=log)
        except TRANSIENT_ERRORS:
            # Progress may be lost; the lease renewal decides whether to continue.
            _log.debug("progress_not_written", job_id=self._job.id)
            return False
        return True
