"""What the service says about itself: logs, metrics, traces; every name written once."""

from app.telemetry.logs import configure_logging, get_logger

__all__ = ["configure_logging", "get_logger"]
