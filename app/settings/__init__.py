"""Settings of the service, read from the environment."""

from app.settings.base import PREFIX
from app.settings.settings import Settings, get_settings, is_loopback

__all__ = ["PREFIX", "Settings", "get_settings", "is_loopback"]
