"""Limits of requests per key and of wrong keys per address, counted in Valkey."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
import redis
import structlog
from fastapi.testclient import TestClient

from app.adapters.rate_limit import RateLimiter
from app.adapters.valkey import client_url
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR as OPERATOR_PRINCIPAL
from app.domain.principal import Scope
from app.embedded.valkey import EmbeddedValkey
from app.main import create_app
from app.services import keys
from app.services.rate_limit import FailedAuthenticationLimit
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import bearer, in_state, key_of
from tests.conftest import OPERATOR_KEY

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
# So slow that no bucket fills during a test, even on a busy machine.
LIMITS = {
    "requests_per_second": 0.001,
    "requests_burst": 3,
    "wrong_keys_per_minute": 0.06,
    "wrong_keys_burst": 3,
}
OPERATOR = {"authorization": f"Bearer {OPERATOR_KEY}"}
WRONG = {"authorization": "Bearer wrong"}


def limited_app(settings: Settings, address: str = "192.0.2.1", **changes: object) -> TestClient:
    values = settings.model_dump() | {"auth": "on", "api_key": OPERATOR_KEY} | LIMITS | changes
    app = create_app(Settings(**values))
    return TestClient(app, raise_server_exceptions=False, client=(address, 50_000))


@pytest.fixture
def limited(settings: Settings) -> Iterator[TestClient]:
    with limited_app(settings) as client:
        yield client


def statuses(client: TestClient, headers: dict[str, str], path: str = "/v1/jobs") -> list[int]:
    return [client.get(path, headers=headers).status_code for _ in range(4)]


def resources_of(client: TestClient) -> Resources:
    resources: Resources = client.app.state.resources  # type: ignore[attr-defined]
    return resources


def test_requests_beyond_the_burst_of_a_key_are_rejected(limited: TestClient) -> None:
    headers = bearer(key_of(resources_of(limited)))
    assert statuses(limited, headers) == [200, 200, 200, 429]
    rejected = limited.get("/v1/jobs", headers=headers)
    assert rejected.json()["code"] == "rate_limited"
    assert rejected.headers["content-type"] == "application/problem+json"
    assert 990 <= int(rejected.headers["retry-after"]) <= 1000


def test_every_key_has_its_own_bucket(limited: TestClient) -> None:
    for _ in range(2):
        headers = bearer(key_of(resources_of(limited)))
        assert statuses(limited, headers) == [200, 200, 200, 429]
    assert statuses(limited, OPERATOR)[3] == 429


def test_requests_to_unknown_paths_count(limited: TestClient) -> None:
    headers = bearer(key_of(resources_of(limited), Scope.READ))
    assert statuses(limited, headers, "/v1/nothing") == [404, 404, 404, 429]


def test_health_and_signed_links_are_exempt(limited: TestClient) -> None:
    resources = resources_of(limited)
    headers = bearer(key_of(resources))
    link = resources.signer.sign(in_state(resources, State.SUCCEEDED).id, "config.json", 60)
    for path in ("/livez", "/readyz", link):
        assert statuses(limited, headers, path) == [200] * 4


def test_all_processes_share_the_count(settings: Settings, limited: TestClient) -> None:
    headers = bearer(key_of(resources_of(limited)))
    with limited_app(settings) as second:
        clients = (limited, second, limited, second)
        codes = [client.get("/v1/jobs", headers=headers).status_code for client in clients]
    assert codes == [200, 200, 200, 429]


def test_without_valkey_requests_pass_and_a_warning_is_logged(settings: Settings) -> None:
    with limited_app(settings, broker_url="redis+socket:///nonexistent/socket") as client:
        headers = bearer(key_of(resources_of(client)))
        with structlog.testing.capture_logs() as logs:
            assert statuses(client, headers) == [200] * 4
            assert statuses(client, WRONG) == [401] * 4
    assert "rate_limit_suspended" in [line["event"] for line in logs]


def test_an_address_is_rejected_after_several_wrong_keys(limited: TestClient) -> None:
    assert statuses(limited, WRONG) == [401, 401, 401, 429]
    rejected = limited.get("/v1/jobs", headers=WRONG)
    assert (rejected.status_code, rejected.json()["code"]) == (429, "rate_limited")
    assert 990 <= int(rejected.headers["retry-after"]) <= 1000


def test_revoked_keys_count_as_wrong_keys_and_missing_ones_do_not(limited: TestClient) -> None:
    assert statuses(limited, {}) == [401] * 4
    resources = resources_of(limited)
    secret = key_of(resources)
    page = keys.list_keys(resources, OPERATOR_PRINCIPAL, project_id=None, limit=1, before=None)
    keys.revoke_key(resources, OPERATOR_PRINCIPAL, page.data[0].id)
    assert statuses(limited, bearer(secret)) == [401, 401, 401, 429]


def test_a_limited_address_may_use_issued_keys_but_not_guess_the_operator_key(
    limited: TestClient,
) -> None:
    statuses(limited, WRONG)
    assert limited.get("/v1/jobs", headers=OPERATOR).status_code == 429
    made = bearer(key_of(resources_of(limited)))
    assert limited.get("/v1/jobs", headers=made).status_code == 200


def test_all_processes_share_the_count_of_wrong_keys(
    settings: Settings, limited: TestClient
) -> None:
    statuses(limited, WRONG)
    with limited_app(settings) as second:
        assert second.get("/v1/jobs", headers=WRONG).status_code == 429


def test_other_addresses_are_not_limited(settings: Settings, limited: TestClient) -> None:
    statuses(limited, WRONG)
    with limited_app(settings, "192.0.2.2") as elsewhere:
        assert elsewhere.get("/v1/jobs", headers=OPERATOR).status_code == 200
        assert statuses(elsewhere, WRONG) == [401, 401, 401, 429]


@pytest.mark.parametrize(
    ("address", "neighbour", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("testclient", "other", False),
    ],
)
def test_addresses_of_the_same_network_share_a_limit(
    broker_url: str, address: str, neighbour: str, same: bool
) -> None:
    limit = FailedAuthenticationLimit(
        RateLimiter(broker_url, lambda: "dep_test", per_second=0.001, burst=1)
    )
    assert limit.count(address) == 0.0
    assert limit.seconds_to_wait(address) == 0.0
    assert limit.count(address) > 0.0
    assert (limit.seconds_to_wait(neighbour) > 0.0) is same
    assert (limit.count(neighbour) > 0.0) is same
    limit.close()


def test_an_address_may_try_again_after_the_wait(broker_url: str) -> None:
    limit = FailedAuthenticationLimit(
        RateLimiter(broker_url, lambda: "dep_test", per_second=5.0, burst=1)
    )
    # Repeated until it is rejected, since a busy machine lets the bucket fill meanwhile.
    seconds = next(filter(None, (limit.count("192.0.2.1") for _ in itertools.count())))
    time.sleep(seconds + 0.01)
    assert limit.seconds_to_wait("192.0.2.1") == 0.0
    assert limit.count("192.0.2.1") == 0.0
    limit.close()


def test_callers_of_other_deployments_on_the_broker_have_buckets_of_their_own(
    broker_url: str,
) -> None:
    one, two = (
        RateLimiter(broker_url, lambda name=name: name, per_second=0.001, burst=1)  # type: ignore[misc]
        for name in ("dep_one", "dep_two")
    )
    assert [one.seconds_to_wait("a"), two.seconds_to_wait("a")] == [0.0, 0.0]
    assert one.seconds_to_wait("a") > 0
    one.close()
    two.close()


def test_the_bucket_fills_by_the_clock_of_valkey(valkey_server: EmbeddedValkey) -> None:
    limiter = RateLimiter(valkey_server.url, lambda: "dep_test", per_second=2.0, burst=1)
    with redis.Redis.from_url(valkey_server.redis_url) as client:
        client.flushall()
        assert limiter.seconds_to_wait("a") == 0.0
        assert 0.0 < limiter.seconds_to_wait("a") <= 0.5
        # Let half a second pass.
        past = float(client.hget("intraslice:rate:dep_test:a", "at")) - 0.5
        client.hset("intraslice:rate:dep_test:a", "at", past)
        assert limiter.seconds_to_wait("a") == 0.0
        # A restarted server has lost the script.
        client.script_flush()
        assert limiter.seconds_to_wait("b") == 0.0
        # A clock that is set back removes no tokens.
        client.hset("intraslice:rate:dep_test:a", mapping={"tokens": 1, "at": past + 1000})
        assert limiter.seconds_to_wait("a") == 0.0
        assert 0 < client.ttl("intraslice:rate:dep_test:a") <= 2
    limiter.close()


@pytest.mark.parametrize(
    ("celery", "plain"),
    [
        ("redis+socket:///run/x.sock?virtual_host=3", "unix:///run/x.sock?db=3"),
        ("redis+socket:///run/x.sock", "unix:///run/x.sock?db=0"),
        ("redis://:pw@host:6380/1", "redis://:pw@host:6380/1"),
        ("rediss://host/0", "rediss://host/0"),
    ],
)
def test_celery_broker_urls_are_translated_for_redis_py(celery: str, plain: str) -> None:
    assert client_url(celery) == plain
