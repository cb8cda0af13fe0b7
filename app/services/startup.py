"""Checks of the servers at the start of a process: mistakes end it, outages do not.

A server that rejects the settings, such as the password, will go on doing so: the process ends with
the reason, and its supervisor starts it again. A server that does not answer may be about to start.
"""

from __future__ import annotations

import threading

from app.domain.errors import BrokerUnavailableError, DatabaseUnavailableError, SchemaError
from app.services.resources import Resources
from app.services.schema import check_schema
from app.telemetry.outages import BROKER, DATABASE, OUTAGES, unreported

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0


def check_servers(resources: Resources) -> None:
    """Raise if the database or the broker rejects the settings; only warn if one is away.

    Raises:
        UnavailableError: naming the server and its reason.
    """
    try:
        with unreported():
            resources.database.schema()
    except DatabaseUnavailableError as error:
        _raise_if_rejected(error, DATABASE)
    _check_broker(resources)


def wait_for_servers(resources: Resources, stopping: threading.Event) -> str | None:
    """Return the deployment's id as soon as the database answers; None if `stopping` is set.

    For processes that can do nothing without the database.

    Raises:
        UnavailableError: if the database or the broker rejects the settings, or the schema does
            not fit this version.
    """
    pause = _FIRST_PAUSE_SECONDS
    while not stopping.is_set():
        deployment_id = _deployment_id(resources)
        if deployment_id is not None:
            _check_broker(resources)
            return deployment_id
        stopping.wait(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return None


def _deployment_id(resources: Resources) -> str | None:
    """Return the id of the deployment; None if the database is away.

    Raises:
        DatabaseUnavailableError: if it rejects the settings, or the schema does not fit.
    """
    try:
        with unreported():
            check_schema(resources.database)
            deployment_id = resources.deployment.read().id
    except SchemaError as error:
        raise SchemaError(f"{resources.database.address}: {error.message}") from error
    except DatabaseUnavailableError as error:
        _raise_if_rejected(error, DATABASE)
        return None
    OUTAGES.note_success(DATABASE)
    return deployment_id


def _check_broker(resources: Resources) -> None:
    try:
        with unreported():
            resources.queue.check()
    except BrokerUnavailableError as error:
        _raise_if_rejected(error, BROKER)


def _raise_if_rejected(
    error: DatabaseUnavailableError | BrokerUnavailableError, server: str
) -> None:
    if error.rejected:
        raise error
    OUTAGES.note_failure(server, error.message)
