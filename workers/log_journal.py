"""Log of an attempt's engine process on its way to the database."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.domain.errors import TRANSIENT_ERRORS
from app.domain.job import JobRecord
from app.domain.job_log import NewLogLine
from app.services import job_log
from app.services.resources import Resources
from app.settings import Settings
from app.telemetry import get_logger
from app.telemetry.redaction import Redaction
from workers.child_process import ChildProcess, environment
from workers.log_lines import log_line

_SECONDS_BETWEEN_WRITES = 1.0
_MOST_PENDING = 400
"""Lines that are kept while they cannot be written."""
_SECRET_NAMES = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "ACCESS_KEY", "CREDENTIAL")
_LEAST_SECRET_CHARACTERS = 6
_log = get_logger(__name__)


class LogJournal:
    """Stores the lines of an engine process, at most once a second."""

    def __init__(self, resources: Resources, job: JobRecord) -> None:
        self._resources = resources
        self._job = job
        self.redaction = log_redaction(resources.settings, environment(None))
        """Redaction of secrets and local paths in stored lines."""
        self._pending: list[NewLogLine] = []
        self._written = 0.0

    def write(self, child: ChildProcess, *, last: bool = False) -> None:
        """Store what the process has logged since the last call that did.

        Args:
            child: the process.
            last: True once it has ended, to store the rest at once.

        Raises:
            LeaseLostError: if another worker owns the job.
        """
        if not last and time.monotonic() - self._written < _SECONDS_BETWEEN_WRITES:
            return
        self._written = time.monotonic()
        lines = [self._line(entry, child.context) for entry in child.take_log()]
        self._pending = [*self._pending, *lines][-_MOST_PENDING:]
        if not self._pending:
            return
        try:
            job_log.record_lines(self._resources, self._job.lease, self._pending)
        except TRANSIENT_ERRORS:
            # Lines may be lost; the lease renewal decides whether to continue.
            _log.debug("log_not_stored", job_id=self._job.id)
            return
        self._pending = []

    def _line(self, entry: Mapping[str, Any], context: Mapping[str, str]) -> NewLogLine:
        return log_line(entry, self.redaction, omitted=context.keys())


def log_redaction(settings: Settings, variables: Mapping[str, str]) -> Redaction:
    """Return the redaction of stored lines: our secrets, those that the child inherits, our paths.

    Args:
        settings: settings of the worker.
        variables: environment variables of the engine process, which it may print.
    """
    inherited = (
        value
        for name, value in variables.items()
        if any(part in name.upper() for part in _SECRET_NAMES)
        and len(value) >= _LEAST_SECRET_CHARACTERS
    )
    directories = (
        *settings.model_roots,
        *settings.data_roots,
        settings.data_dir.absolute(),
        Path(variables.get("HOME", "")),
        Path(tempfile.gettempdir()),
        Path(sys.prefix),
    )
    return Redaction((*settings.secrets, *inherited), directories)
