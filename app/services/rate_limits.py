"""How often a caller may ask."""

from __future__ import annotations

from app.adapters.rate_limit import RateLimiter
from app.domain.errors import BrokerUnavailableError
from app.domain.principal import Principal
from app.telemetry import get_logger

_OPERATOR, _NOBODY = "operator", "nobody"
_log = get_logger(__name__)


def seconds_to_wait(limiter: RateLimiter, principal: Principal) -> float:
    """0 if the principal may go on."""
    unnamed = _OPERATOR if principal.is_operator else _NOBODY
    return take(limiter, principal.key_id or unnamed)


def take(limiter: RateLimiter, caller: str) -> float:
    """0 if the caller may go on. Without Valkey everybody may: a limit is no lock."""
    try:
        return limiter.seconds_to_wait(caller)
    except BrokerUnavailableError as error:
        _log.warning("rate_limit_suspended", reason=error.message, caller=caller)
        return 0.0
