"""The synchronous client equals its generated form, and both cover every operation."""

from __future__ import annotations

import json
import re
from pathlib import Path

from intraslice_client._async import transport
from tools.make_synchronous_client import CLIENT, generate

SNAPSHOT = Path(__file__).parents[2] / "openapi.json"
ELSEWHERE = {
    "GET /livez": "for process supervisors",
    "GET /metrics": "for Prometheus",
    "GET /v1/archives/{}.zip": "a link of a job's artifacts, for browsers",
    "GET /v1/downloads/{}/{}": "a link of an artifact",
    "GET /v1/reports/{}": "a link to a shared report page, for browsers",
    "PUT /v1/uploads/{}/parts/{}/{}": "a link of an upload",
}
_PATH = re.compile(r'f?"(/[a-z0-9/:{}_.-]+)"')
_METHOD = re.compile(r'"(GET|POST|PUT|PATCH|DELETE)"')
_FILE = "{path}/complete"


def test_synchronous_client_is_up_to_date(tmp_path: Path) -> None:
    generate(tmp_path / "_sync")
    for file in (tmp_path / "_sync").glob("*.py"):
        assert file.read_text() == (CLIENT / "_sync" / file.name).read_text(), file.name
    assert not any("await" in file.read_text() for file in (CLIENT / "_sync").glob("*.py"))


def test_every_operation_of_the_service_is_in_the_client() -> None:
    described = json.loads(SNAPSHOT.read_text())["paths"]
    operations = {
        f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
        for path, methods in described.items()
        for method in methods
        if method in ("get", "post", "put", "patch", "delete")
    }
    text = "\n".join(file.read_text() for file in (CLIENT / "_async").glob("*.py"))
    paths = {re.sub(r"{[^}]*}", "{}", path) for path in _PATH.findall(text)}
    actions = re.findall(r'_act\(job_id, "(\w+)"', text)
    covered = (
        paths | {f"/v1/jobs/{{}}/{action}" for action in actions} | {"/v1/uploads/{}/complete"}
    )
    missing = {name for name in operations if name.split()[1] not in covered} - ELSEWHERE.keys()
    assert missing == set()
    assert _FILE in text


def test_every_path_of_the_client_exists() -> None:
    described = json.loads(SNAPSHOT.read_text())["paths"]
    described_paths = {re.sub(r"{[^}]*}", "{}", path) for path in described} | {"/readyz"}
    text = "\n".join(file.read_text() for file in (CLIENT / "_async").glob("*.py"))
    for path in _PATH.findall(text):
        shape = re.sub(r"{[^}]*}", "{}", path)
        assert shape in described_paths or shape == "/v1/jobs/{}/{}", path


def test_only_idempotent_methods_are_retried_by_default() -> None:
    assert {"GET", "PUT", "DELETE"} == transport._IDEMPOTENT_METHODS
