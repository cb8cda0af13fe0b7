"""Logs, metrics and traces of the service."""

from app.telemetry.logs import configure_logging, get_logger

__all__ = ["configure_logging", "get_logger"]
