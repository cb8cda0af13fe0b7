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
    """Secrets of the deployment's webhooks, derived from its signing key.

    Args:
        signing_key: key from which new secrets are derived.
        previous: second key, so that the secrets derived from it keep signing.
    """

    def __init__(self, signing_key: str, previous: str | None = None) -> None:
        signing_keys = (signing_key,) if previous is None else (signing_key, previous)
        # Keys of their own, so that no download link is ever a secret.
        self._keys = tuple(_purpose_key(key) for key in signing_keys)

    def create(self, webhook_id: str) -> tuple[str, Secret]:
        """Return a new secret for the receiver, and the salt and fingerprint to store."""
        salt = secrets.token_hex(_SALT_BYTES)
        derived = _derive(self._keys[0], webhook_id, salt)
        return derived, Secret(salt=salt, fingerprint=_fingerprint(derived))

    def signing(self, webhook_id: str, secret: Secret, previous_salt: str | None) -> list[str]:
        """Return the secrets that sign a webhook's deliveries, the current one first.

        The list is empty if no signing key derives the current secret. The salt of the secret
        before it does not tell its signing key, so each key derives one; a superfluous signature
        matches no receiver's secret.
        """
        current = [
            derived
            for derived in self._candidates(webhook_id, secret.salt)
            if _fingerprint(derived) == secret.fingerprint
        ]
        rotated = [] if previous_salt is None else self._candidates(webhook_id, previous_salt)
        return current + rotated if current else []

    def needs_previous_key(self, webhook_id: str, secret: Secret) -> bool:
        """Return whether the secret was derived from the previous signing key."""
        _, *former = self._candidates(webhook_id, secret.salt)
        return secret.fingerprint in map(_fingerprint, former)

    def _candidates(self, webhook_id: str, salt: str) -> list[str]:
        """Return the secret of a salt under each signing key."""
        return [_derive(key, webhook_id, salt) for key in self._keys]


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


def _purpose_key(signing_key: str) -> bytes:
    return hmac.digest(signing_key.encode(), _PURPOSE, hashlib.sha256)


def _derive(key: bytes, webhook_id: str, salt: str) -> str:
    digest = hmac.digest(key, f"{webhook_id}\n{salt}".encode(), hashlib.sha256)
    return _PREFIX + base64.b64encode(digest).decode()
