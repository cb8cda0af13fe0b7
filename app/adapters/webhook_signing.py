"""Signing of webhook deliveries and derivation of their secrets (Standard Webhooks specification).

A secret is not kept, neither in clear nor encrypted: it is derived, when needed, from the
deployment's signing key and a random salt in the webhook's row. Neither of the two alone gives it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime

from standardwebhooks import Webhook as Signer

from app.domain.webhook import Secret

_PREFIX = "whsec_"
_PURPOSE = b"intraslice webhook secrets"
_SALT_BYTES = 32
_FINGERPRINT_DIGITS = 16


class WebhookSecrets:
    """Secrets of the deployment's webhooks, derived from its signing key."""

    def __init__(self, signing_key: str) -> None:
        # A key of its own, so that no download link is ever a secret.
        self._key = hmac.digest(signing_key.encode(), _PURPOSE, hashlib.sha256)

    def create(self, webhook_id: str) -> tuple[str, Secret]:
        """Return a new secret for the receiver, and the salt and fingerprint to store."""
        salt = secrets.token_hex(_SALT_BYTES)
        derived = self.derive(webhook_id, salt)
        return derived, Secret(salt=salt, fingerprint=_fingerprint(derived))

    def derive(self, webhook_id: str, salt: str) -> str:
        digest = hmac.digest(self._key, f"{webhook_id}\n{salt}".encode(), hashlib.sha256)
        return _PREFIX + base64.b64encode(digest).decode()

    def recognises(self, webhook_id: str, secret: Secret) -> bool:
        """Return whether the secret was derived from the current signing key."""
        return _fingerprint(self.derive(webhook_id, secret.salt)) == secret.fingerprint


def signed_headers(
    message_id: str, at: datetime, body: str, signing: Sequence[str]
) -> dict[str, str]:
    """Return the three headers, with a signature for each secret; `at` is in UTC."""
    signatures = [Signer(secret).sign(message_id, at, body) for secret in signing]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _fingerprint(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:_FINGERPRINT_DIGITS]
