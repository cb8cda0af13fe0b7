"""Verification of webhook signatures, for receivers of webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intraslice_client.errors import ForgedWebhookError


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Verify the signature of a received webhook and return its payload.

    Args:
        secret: secret of the webhook, `whsec_…`.
        headers: headers of the request.
        body: body of the request, unmodified.

    Raises:
        ForgedWebhookError: if no signature matches, or the request is older than five minutes.
    """
    # Only receivers need it, and it takes long to import.
    from standardwebhooks import Webhook, WebhookVerificationError

    try:
        payload: dict[str, Any] = Webhook(secret).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError) as error:
        # The library raises ValueError for headers that it cannot parse.
        raise ForgedWebhookError(str(error)) from error
    return payload
