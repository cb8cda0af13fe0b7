"""How often a caller may ask."""

from __future__ import annotations

from app.domain.errors import BrokerUnavailableError
from app.domain.principal import Principal
from app.services.resources import Resources
from app.telemetry import get_logger

_OPERATOR, _NOBODY = "operator", "nobody"
_log = get_logger(__name__)


def seconds_to_wait(resources: Resources, principal: Principal) -> float:
    """0 if the caller may go on. Without Valkey everybody may: a limit is no lock."""
    unnamed = _OPERATOR if principal.is_operator else _NOBODY
    try:
        return resources.limiter.seconds_to_wait(principal.key_id or unnamed)
    except BrokerUnavailableError as error:
        _log.warning("rate_limit_suspended", reason=error.message, key_id=principal.key_id)
        return 0.0
