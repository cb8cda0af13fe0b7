"""Signatures follow the Standard Webhooks specification; secrets are derived, not stored."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.adapters.webhook_signing import WebhookSecrets, signed_headers

# The vector that the specification's own libraries are tested with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = "msg_p5jXN8AQM9LWM0D4loKWxJek"
AT = datetime.fromtimestamp(1614265330, UTC)
BODY = '{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_published_test_vector_is_reproduced() -> None:
    assert signed_headers(MESSAGE, AT, BODY, [SECRET]) == {
        "webhook-id": MESSAGE,
        "webhook-timestamp": "1614265330",
        "webhook-signature": SIGNATURE,
    }


def test_two_secrets_give_two_signatures_and_either_verifies() -> None:
    keys = WebhookSecrets("k" * 20)
    old, _ = keys.create("whk_1")
    new, _ = keys.create("whk_1")
    headers = signed_headers(MESSAGE, datetime.now(UTC), BODY, [new, old])
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        assert Webhook(secret).verify(BODY, headers) == {"test": 2432232314}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY, headers)


def test_secrets_have_256_bits_and_are_unique() -> None:
    keys = WebhookSecrets("k" * 20)
    made = [keys.create("whk_1")[0] for _ in range(10)]
    assert len(set(made)) == 10
    for secret in made:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32


def test_the_stored_salt_yields_the_secret_only_with_the_signing_key() -> None:
    secret, stored = WebhookSecrets("k" * 20).create("whk_1")
    same, other = WebhookSecrets("k" * 20), WebhookSecrets("K" * 20)
    assert same.signing("whk_1", stored, None) == [secret]
    assert other.signing("whk_1", stored, None) == []
    assert same.signing("whk_2", stored, None) == []


def test_a_secret_of_the_previous_signing_key_keeps_signing_until_it_is_rotated() -> None:
    before, after = WebhookSecrets("old" * 8), WebhookSecrets("new" * 8, previous="old" * 8)
    old, stored = before.create("whk_1")
    assert after.signing("whk_1", stored, None) == [old]
    assert after.needs_previous_key("whk_1", stored)
    new, rotated = after.create("whk_1")
    assert not after.needs_previous_key("whk_1", rotated)
    during = after.signing("whk_1", rotated, stored.salt)
    assert during[0] == new
    assert old in during
    headers = signed_headers(MESSAGE, datetime.now(UTC), BODY, during)
    for secret in (old, new):
        assert Webhook(secret).verify(BODY, headers) == {"test": 2432232314}
    assert WebhookSecrets("new" * 8).signing("whk_1", rotated, None) == [new]


def test_every_process_signs_alike_while_the_signing_key_is_replaced() -> None:
    """Neighbouring steps of docs/rotate-keys.md overlap; each knows the other's key."""
    steps = [("old" * 8, None), ("old" * 8, "new" * 8), ("new" * 8, "old" * 8)]
    for earlier, later in pairwise(WebhookSecrets(*keys) for keys in steps):
        for maker, sender in ((earlier, later), (later, earlier)):
            secret, stored = maker.create("whk_1")
            assert sender.signing("whk_1", stored, None) == [secret]
