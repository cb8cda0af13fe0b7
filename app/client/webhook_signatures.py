"""For receivers of webhooks: does this request come from the service?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from app.client.errors import ForgedWebhookError


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The payload of a request that a webhook received; `body` as it came, byte for byte.

    Raises:
        ForgedWebhookError: if no signature is right, or the request is older than five minutes.
    """
    try:
        payload: dict[str, Any] = Webhook(secret).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError) as error:
        # Headers without any form make the library stumble over them: ValueError.
        raise ForgedWebhookError(str(error)) from error
    return payload
