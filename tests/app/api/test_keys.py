"""API keys over HTTP: shown once, stored as digests, valid until they expire or are revoked."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from app.domain.api_key import digest, is_secret, new_secret
from app.domain.principal import Scope
from app.main import create_app
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import BODY, bearer, key_of
from tests.conftest import OPERATOR_KEY

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
OPERATOR_HEADERS = {"authorization": f"Bearer {OPERATOR_KEY}"}


def make(client: TestClient, headers: dict[str, str], **body: Any) -> dict[str, Any]:
    response = client.post("/v1/keys", json={"name": "x", "scope": "read"} | body, headers=headers)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


def authorised(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def sql(settings: Settings, statement: str, *values: Any) -> list[Any]:
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def test_the_secret_is_shown_once(closed: TestClient) -> None:
    response = closed.post(
        "/v1/keys", json={"name": "ci", "scope": "write"}, headers=OPERATOR_HEADERS
    )
    made = response.json()
    assert response.headers["location"] == f"/v1/keys/{made['id']}"
    assert response.headers["cache-control"] == "no-store"
    assert is_secret(made["secret"])
    assert made["secret"].startswith(made["hint"])
    assert (made["project"], made["scope"], made["created_by"]) == ("default", "write", None)
    shown = closed.get(f"/v1/keys/{made['id']}", headers=OPERATOR_HEADERS)
    assert shown.json() == {name: value for name, value in made.items() if name != "secret"}
    assert made["secret"] not in closed.get("/v1/keys", headers=OPERATOR_HEADERS).text


def test_only_the_digest_is_stored(closed: TestClient, settings: Settings) -> None:
    made = make(closed, OPERATOR_HEADERS)
    (row,) = sql(settings, "SELECT * FROM api_keys")
    assert made["secret"] not in str(row)
    assert digest(made["secret"]) in row


@pytest.mark.parametrize(
    ("scope", "read", "write", "admin"),
    [("read", 200, 403, 403), ("write", 200, 202, 403), ("admin", 200, 202, 200)],
)
def test_each_scope_includes_the_one_before(
    closed: TestClient, scope: str, read: int, write: int, admin: int
) -> None:
    headers = authorised(make(closed, OPERATOR_HEADERS, scope=scope)["secret"])
    assert closed.get("/v1/jobs", headers=headers).status_code == read
    assert closed.post("/v1/jobs", json=BODY, headers=headers).status_code == write
    assert closed.get("/v1/keys", headers=headers).status_code == admin


def test_administrators_create_keys_for_their_own_project_only(closed: TestClient) -> None:
    boss = make(closed, OPERATOR_HEADERS, scope="admin", project="search")
    headers = authorised(boss["secret"])
    assert make(closed, headers)["project"] == "search"
    assert make(closed, headers, project="search")["created_by"] == boss["id"]
    for foreign in ("default", "other"):
        body = {"name": "x", "scope": "read", "project": foreign}
        rejected = closed.post("/v1/keys", json=body, headers=headers)
        assert (rejected.status_code, rejected.json()["code"]) == (403, "scope_missing")
        listed = closed.get("/v1/keys", params={"project": foreign}, headers=headers)
        assert listed.status_code == 403


def test_the_operator_manages_the_keys_of_every_project(closed: TestClient) -> None:
    made = make(closed, OPERATOR_HEADERS, project="search")
    for project, expected in (("search", [made["id"]]), ("default", [])):
        page = closed.get("/v1/keys", params={"project": project}, headers=OPERATOR_HEADERS)
        assert [key["id"] for key in page.json()["data"]] == expected
    revoked = closed.delete(f"/v1/keys/{made['id']}", headers=OPERATOR_HEADERS)
    assert revoked.status_code == 204
    assert closed.get("/v1/jobs", headers=authorised(made["secret"])).status_code == 401


def test_a_revoked_key_is_rejected_at_once_and_stays_listed(closed: TestClient) -> None:
    made = make(closed, OPERATOR_HEADERS)
    headers = authorised(made["secret"])
    assert closed.get("/v1/jobs", headers=headers).status_code == 200
    for _ in range(2):
        gone = closed.delete(f"/v1/keys/{made['id']}", headers=OPERATOR_HEADERS)
        assert gone.status_code == 204
    rejected = closed.get("/v1/jobs", headers=headers)
    assert (rejected.status_code, rejected.json()["code"]) == (401, "unauthenticated")
    assert rejected.headers["www-authenticate"] == "Bearer"
    assert closed.get(f"/v1/keys/{made['id']}", headers=OPERATOR_HEADERS).json()["revoked_at"]


def test_a_key_revoked_in_another_process_is_rejected_when_its_cache_entry_expires(
    closed: TestClient, settings: Settings
) -> None:
    made = make(closed, OPERATOR_HEADERS)
    headers = authorised(made["secret"])
    closed_cache = closed.app.state.resources.key_cache  # type: ignore[attr-defined]
    assert closed.get("/v1/jobs", headers=headers).status_code == 200
    sql(settings, "UPDATE api_keys SET revoked_at = now()")
    assert closed.get("/v1/jobs", headers=headers).status_code == 200
    closed_cache._seconds = 0.0  # the next entry has expired as soon as it is written
    closed_cache.forget(made["id"])
    assert closed.get("/v1/jobs", headers=headers).status_code == 401
    assert Settings.model_fields["key_cache_seconds"].default <= 3


def test_an_expired_key_is_rejected(closed: TestClient, settings: Settings) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = make(closed, OPERATOR_HEADERS, expires_at=soon)
    headers = authorised(made["secret"])
    sql(settings, "UPDATE api_keys SET expires_at = now() - interval '1 second'")
    assert closed.get("/v1/jobs", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"expires_at": "2999-01-01T00:00:00"},
        {"scope": "everything"},
        {"name": ""},
        {"name": "a\0b"},
        {"project": "../x"},
        {"secret": "mine"},
    ],
)
def test_invalid_keys_are_rejected(closed: TestClient, body: dict[str, Any]) -> None:
    (field,) = body
    complete = {"name": "x", "scope": "read"} | body
    rejected = closed.post("/v1/keys", json=complete, headers=OPERATOR_HEADERS)
    assert rejected.status_code == 422
    assert [error["pointer"] for error in rejected.json()["errors"]] == [f"/{field}"]


def test_malformed_secrets_are_rejected_without_a_database() -> None:
    secret = new_secret()
    assert is_secret(secret)
    wrong = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    for text in (wrong, secret.upper(), secret + "0", "isk_", "", secret[:-1]):
        assert not is_secret(text)


def test_the_last_use_is_recorded_at_most_once_a_minute(
    closed: TestClient, settings: Settings
) -> None:
    made = make(closed, OPERATOR_HEADERS)
    headers = authorised(made["secret"])
    cache = closed.app.state.resources.key_cache  # type: ignore[attr-defined]

    def used_at() -> datetime:
        cache.forget(made["id"])
        assert closed.get("/v1/jobs", headers=headers).status_code == 200
        ((used,),) = sql(settings, "SELECT last_used_at FROM api_keys")
        assert isinstance(used, datetime)
        return used

    first = used_at()
    assert used_at() == first
    sql(settings, "UPDATE api_keys SET last_used_at = now() - interval '61 seconds'")
    assert used_at() >= first


def test_pages_contain_every_key_once_newest_first(closed: TestClient) -> None:
    made = [make(closed, OPERATOR_HEADERS)["id"] for _ in range(3)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    for _ in range(2):
        page = closed.get("/v1/keys", params=query, headers=OPERATOR_HEADERS).json()
        seen += [key["id"] for key in page["data"]]
        query["after"] = page["next_cursor"]
    assert seen == sorted(made, reverse=True)
    assert page["next_cursor"] is None
    job_cursor = "am9iXzAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw"
    rejected = closed.get("/v1/keys", params={"after": job_cursor}, headers=OPERATOR_HEADERS)
    assert rejected.status_code == 422


def test_unknown_keys_are_not_found(closed: TestClient) -> None:
    for name in ("key_" + "0" * 26, "x", "a%00b", "job_" + "0" * 26):
        for method in ("GET", "DELETE"):
            answer = closed.request(method, f"/v1/keys/{name}", headers=OPERATOR_HEADERS)
            assert (answer.status_code, answer.json()["code"]) == (404, "key_not_found")


def test_keys_work_without_an_operator_key(settings: Settings) -> None:
    values = settings.model_dump() | {"auth": "on", "api_key": None}
    with TestClient(create_app(Settings(**values))) as client:
        resources: Resources = client.app.state.resources  # type: ignore[attr-defined]
        headers = bearer(key_of(resources, Scope.READ))
        assert client.get("/v1/jobs", headers=headers).status_code == 200


def test_a_database_outage_is_a_503_for_keys_but_not_for_the_operator(
    settings: Settings,
) -> None:
    url = "postgresql+psycopg://nobody@/none?host=/nonexistent"
    values = settings.model_dump() | {"auth": "on", "api_key": OPERATOR_KEY, "database_url": url}
    with TestClient(create_app(Settings(**values))) as client:
        rejected = client.get("/v1/jobs", headers=authorised(new_secret()))
        assert (rejected.status_code, rejected.json()["code"]) == (503, "database_unavailable")
        assert rejected.headers["retry-after"]
        assert client.get("/openapi.json", headers=OPERATOR_HEADERS).status_code == 200


def test_concurrent_requests_see_the_keys_of_their_own_project(closed: TestClient) -> None:
    resources: Resources = closed.app.state.resources  # type: ignore[attr-defined]
    keys = [key_of(resources, Scope.ADMIN, f"project-{number}") for number in range(8)]

    def own_id(number: int) -> bool:
        listed = closed.get("/v1/keys", headers=bearer(keys[number % 8])).json()["data"]
        return [key["id"] for key in listed] == [keys[number % 8].id]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(own_id, range(48)))


def test_secrets_have_the_form_that_secret_scanners_detect() -> None:
    assert re.fullmatch(r"isk_[0-9a-f]{72}", new_secret())
    assert len({new_secret() for _ in range(100)}) == 100
