"""Logs on stderr: JSON lines for collectors, coloured text for a terminal.

Entries of libraries take the same path as ours, so that a collector receives one format. Secrets
are removed from the finished line, whatever their origin.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, Literal

import structlog

from app.telemetry.redaction import HIDDEN
from app.telemetry.traces import current_trace_id

LogFormat = Literal["json", "console"]

_VERBOSE_LIBRARIES = ("uvicorn",)
"""Libraries that log at the configured level; all others only log warnings."""

_Entry = MutableMapping[str, Any]
_Processor = Callable[[Any, str, _Entry], Any]


def configure_logging(
    level: str,
    log_format: LogFormat = "json",
    *,
    secrets: Iterable[str] = (),
    fixed: Mapping[str, str] | None = None,
) -> None:
    """Set up this process's logs.

    Args:
        level: least severe level to write.
        log_format: form of the lines.
        secrets: texts to remove from every line.
        fixed: fields of every line; context variables would not reach the process's threads.
    """
    entry = _entry(fixed or {})
    line = [*_rendering(log_format), _redact(secrets)]
    structlog.configure(
        processors=[*entry, *line],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    _redirect_libraries(level, entry, line)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger


def _entry(fixed: Mapping[str, str]) -> list[_Processor]:
    """Return the processors that add the common fields to every entry."""

    def add_fixed(_logger: Any, _method: str, entry: _Entry) -> _Entry:
        for name, value in fixed.items():
            entry.setdefault(name, value)
        trace_id = current_trace_id()
        if trace_id is not None:
            entry.setdefault("trace_id", trace_id)
        return entry

    return [
        structlog.contextvars.merge_contextvars,
        add_fixed,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _rendering(log_format: LogFormat) -> list[_Processor]:
    plain = structlog.dev.plain_traceback
    if log_format == "console":
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _redact(secrets: Iterable[str]) -> _Processor:
    """Return a processor that removes secrets from a line, in plain and JSON-escaped form."""
    forms = {form for secret in secrets if secret for form in (secret, json.dumps(secret)[1:-1])}

    def hide(_logger: Any, _method: str, line: Any) -> str:
        text = str(line)
        for form in forms:
            text = text.replace(form, HIDDEN)
        return text

    return hide


def _redirect_libraries(level: str, entry: list[_Processor], line: list[_Processor]) -> None:
    """Send records of the standard library's logging through the same processors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *entry],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *line],
        )
    )
    root = logging.getLogger()
    for previous in root.handlers[:]:
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, getattr(logging, level)) if level != "DEBUG" else level)
    for name in _VERBOSE_LIBRARIES:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
