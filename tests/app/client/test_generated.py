"""The synchronous client is the asynchronous one, and both cover what the service offers."""

from __future__ import annotations

import json
import re
from pathlib import Path

from app.client.asynchronous.transport import AsyncTransport
from tools.make_synchronous_client import CLIENT, made

SNAPSHOT = Path(__file__).parents[3] / "openapi.json"
ELSEWHERE = {
    "GET /livez": "for whoever keeps processes alive",
    "GET /metrics": "for Prometheus",
    "GET /v1/archives/{}.zip": "a link of a job's artifacts, for browsers",
    "GET /v1/downloads/{}/{}": "a link of an artifact",
    "PUT /v1/uploads/{}/parts/{}/{}": "a link of an upload",
}
_PATH = re.compile(r'f?"(/[a-z0-9/:{}_.-]+)"')
_METHOD = re.compile(r'"(GET|POST|PUT|PATCH|DELETE)"')
_FILE = "{path}/complete"


def test_making_it_again_changes_nothing(tmp_path: Path) -> None:
    made(tmp_path / "synchronous")
    for file in (tmp_path / "synchronous").glob("*.py"):
        assert file.read_text() == (CLIENT / "synchronous" / file.name).read_text(), file.name
    assert not any("await" in file.read_text() for file in (CLIENT / "synchronous").glob("*.py"))


def test_every_operation_of_the_service_is_in_the_client() -> None:
    described = json.loads(SNAPSHOT.read_text())["paths"]
    operations = {
        f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
        for path, methods in described.items()
        for method in methods
        if method in ("get", "post", "put", "patch", "delete")
    }
    text = "\n".join(file.read_text() for file in (CLIENT / "asynchronous").glob("*.py"))
    paths = {re.sub(r"{[^}]*}", "{}", path) for path in _PATH.findall(text)}
    verbs = re.findall(r'_verb\(job_id, "(\w+)"', text)
    known = paths | {f"/v1/jobs/{{}}/{verb}" for verb in verbs} | {"/v1/uploads/{}/complete"}
    missing = {one for one in operations if one.split()[1] not in known} - ELSEWHERE.keys()
    assert missing == set()
    assert _FILE in text


def test_no_method_of_the_client_leads_nowhere() -> None:
    described = json.loads(SNAPSHOT.read_text())["paths"]
    known = {re.sub(r"{[^}]*}", "{}", path) for path in described} | {"/readyz"}
    text = "\n".join(file.read_text() for file in (CLIENT / "asynchronous").glob("*.py"))
    for path in _PATH.findall(text):
        shape = re.sub(r"{[^}]*}", "{}", path)
        assert shape in known or shape == "/v1/jobs/{}/{}", path


def test_only_what_may_be_done_twice_is_sent_twice_by_default() -> None:
    assert AsyncTransport.__module__ == "app.client.asynchronous.transport"
    from app.client.asynchronous import transport

    assert {"GET", "PUT", "DELETE"} == transport._REPEATABLE
