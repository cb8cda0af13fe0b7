"""Errors of PostgreSQL as errors of the service: which server, and its reason in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import Error as DriverError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.domain.errors import DatabaseUnavailableError, ResourceBusyError
from app.telemetry.outages import DATABASE, OUTAGES
from intraslice_core.errors import ConfigurationError

_LOCK_NOT_AVAILABLE = "55P03"
_UNDEFINED_TABLE, _UNDEFINED_COLUMN = "42P01", "42703"
_NO_PRIVILEGE = "42501"
_REJECTIONS = re.compile(
    r"authentication failed|does not exist|no pg_hba\.conf entry|permission denied"
    r"|not permitted|no password supplied|does not support SSL|certificate"
)
"""Reasons for which PostgreSQL, or its client, rejects a connection however often it is tried.

The client library passes on no codes while it connects. An unknown reason, such as one in the
server's own language, counts as an outage, which is waited for.
"""


class ErrorTranslation:
    """Translation of the errors of one server, which their messages name.

    Args:
        url: as SQLAlchemy takes it.

    Raises:
        ConfigurationError: if the URL cannot be parsed.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            # Without the URL, because of its password.
            raise ConfigurationError(
                "the URL cannot be parsed",
                field="INTRASLICE_DATABASE_URL",
                hint="write postgresql://USER:PASSWORD@HOST:PORT/NAME",
            ) from None
        self.server = _described(parsed)
        self._password = str(parsed.password or "")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate the errors of the block, and report the server's state.

        Raises:
            ResourceBusyError: if a row stayed locked by another transaction.
            DatabaseUnavailableError: if the server does not answer, rejects the connection or has
                no tables; its message names the server and the reason.
        """
        try:
            yield
        except (OperationalError, ProgrammingError, InterfaceError) as error:
            code = getattr(error.orig, "sqlstate", None)
            if code == _LOCK_NOT_AVAILABLE:
                raise ResourceBusyError from error
            if isinstance(error, ProgrammingError) and code not in _ADVICE:
                raise  # a defect of ours
            raise self.unavailable(error.orig) from error
        except PoolTimeoutError as error:
            raise self._unavailable("no connection of the pool became free in time") from error
        OUTAGES.note_success(DATABASE)

    def unavailable(self, error: BaseException | None) -> DatabaseUnavailableError:
        """Report an error of the driver and return it as the service's."""
        code = getattr(error, "sqlstate", None)
        reason = _ADVICE.get(code or "", "{reason}").format(reason=_reason(error))
        connecting = code is None and _REJECTIONS.search(reason) is not None
        return self._unavailable(reason, rejected=connecting or code in _ADVICE)

    def _unavailable(self, reason: str, *, rejected: bool = False) -> DatabaseUnavailableError:
        if len(self._password) > 2:
            reason = reason.replace(self._password, "[secret]")
        message = f"{self.server}: {reason}"
        OUTAGES.note_failure(DATABASE, message)
        return DatabaseUnavailableError(message, rejected=rejected)


_ADVICE = {
    _UNDEFINED_TABLE: "the schema is missing: run intraslice migrate ({reason})",
    _UNDEFINED_COLUMN: "the schema is of another version: run intraslice migrate ({reason})",
    _NO_PRIVILEGE: "{reason}: grant it to the user, or run intraslice migrate as this user",
}


def _described(url: URL) -> str:
    """Return the server's address as people write it, without user and password."""
    host = url.host or str(url.query.get("host") or "")
    port = url.port or url.query.get("port") or 5432
    if not host:
        address = "its default address"  # the client library's, or PGHOST
    else:
        address = f"socket {host}" if host.startswith("/") else f"{host}:{port}"
    return f"PostgreSQL at {address}, database {url.database or url.username}"


def _reason(error: BaseException | None) -> str:
    """Return the server's message, or the last one of the client library, in one line."""
    if isinstance(error, DriverError) and error.diag.message_primary:
        return error.diag.message_primary
    if isinstance(error, TimeoutError):
        return "no answer in time"
    lines = [line for line in str(error).splitlines() if line and not line[0].isspace()]
    failures = [line for line in lines if " failed: " in line]
    line = (failures or lines or [type(error).__name__])[-1 if failures else 0]
    return re.sub(r"^.* failed: (FATAL:\s+)?", "", line)
