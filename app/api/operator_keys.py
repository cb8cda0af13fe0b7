"""The operator key, and its predecessor while it is being replaced."""

from __future__ import annotations

import hmac
from time import monotonic

from app.settings import Settings
from app.telemetry import get_logger, metrics

_LOG_INTERVAL_SECONDS = 60.0
_log = get_logger(__name__)


class OperatorKeys:
    """Comparison of presented secrets with the operator key and the previous one."""

    def __init__(self, settings: Settings) -> None:
        keys = (settings.api_key, settings.api_key_previous)
        self._keys = tuple(key.get_secret_value().encode() for key in keys if key is not None)
        self._log_again_at = 0.0

    def accept(self, secret: str, address: str) -> bool:
        """Return whether the secret is an operator key; report uses of the previous one."""
        presented = secret.encode("latin-1", "replace")
        # Every key is compared, so that the time does not tell which one matched.
        matches = [hmac.compare_digest(presented, key) for key in self._keys]
        if any(matches[1:]):
            self._report_previous(address)
        return any(matches)

    def _report_previous(self, address: str) -> None:
        metrics.PREVIOUS_OPERATOR_KEY_REQUESTS.inc()
        now = monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + _LOG_INTERVAL_SECONDS
            _log.warning(
                "previous_operator_key",
                effect="the previous operator key is still in use",
                address=address,
            )
