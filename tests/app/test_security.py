"""The promises of docs/security.md, one test each.

Jobs that exceed their runtime are tested in `tests/workers/test_runner.py`; webhook URLs at
delivery, including redirects, in `adapters/test_webhook_*.py`; prompts in
`api/test_generations.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import structlog
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.adapters.database.tables import metadata
from app.domain.errors import UploadNotFoundError
from app.domain.principal import Scope
from app.domain.upload import UploadFile, UploadKind, UploadRequest
from app.main import create_app
from app.services import upload_contents, uploads
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig
from tests.app.api.test_tenants import CHANGES, Operation, call
from tests.app.builders import BODY, bearer, key_of, make_request, weights_on_disk
from tests.app.tenants import Tenant
from tests.conftest import OPERATOR_KEY
from tests.workers.running import run_next_job
from workers.child_process import ChildProcess
from workers.messages import ChildRequest

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
REPOSITORY = Path(__file__).parents[2]
OPERATOR_HEADERS = {"authorization": f"Bearer {OPERATOR_KEY}"}
MIB = 2**20


def rejection_code(client: TestClient, source: str, ref: object) -> str | None:
    """Return the code of the error for a job on this model; None if it is accepted."""
    answer = client.post("/v1/jobs", json={"model": {"source": source, "ref": str(ref)}})
    if answer.status_code == 202:
        return None
    assert answer.status_code == 422, answer.text
    code: str = answer.json()["errors"][0]["code"]
    return code


# -- Deny by default -----------------------------------------------------------------------------


def test_api_keys_are_required(closed: TestClient) -> None:
    assert Settings.model_fields["auth"].default == "on"
    assert closed.get("/v1/jobs").status_code == 401
    assert closed.get("/v1/jobs", headers=OPERATOR_HEADERS).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_authentication_can_be_turned_off_only_on_loopback(host: str) -> None:
    assert Settings(auth="off", host="127.0.0.1").auth == "off"
    with pytest.raises(ValidationError, match="INTRASLICE_AUTH=off"):
        Settings(auth="off", host=host)


def test_tenants_never_see_each_others_rows(closed: TestClient) -> None:
    """Compare two tenants on one route; `api/test_tenants.py` covers every route."""
    ours, theirs = Tenant(closed, "ours"), Tenant(closed, "theirs")
    job = closed.post("/v1/jobs", json=BODY, headers=ours.headers()).json()
    assert closed.get(job["urls"]["self"], headers=ours.headers()).status_code == 200
    assert closed.get(job["urls"]["self"], headers=theirs.headers()).status_code == 404
    assert closed.get("/v1/jobs", headers=theirs.headers()).json()["data"] == []


# -- Models ------------------------------------------------------------------------------------


def test_pickled_models_are_rejected(client: TestClient, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert rejection_code(client, "path", weights_on_disk(models / "safe")) is None
    pickled = models / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"model_type": "llama"}')
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert rejection_code(client, "path", pickled) == "broken_checkpoint"
    for name in ("model.pt", "model.pkl", "model.gguf"):
        (models / name).write_bytes(b"\x80\x04.")
        assert rejection_code(client, "path", models / name) == "broken_checkpoint"


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    from intraslice_core.checkpoints.reader import CheckpointReader
    from intraslice_core.evaluation.loaded_models import load_model
    from intraslice_core.tokenizer import load_tokenizer
    from tests.intraslice_core.tiny_models import tiny_llama

    place, marker = tiny_llama(tmp_path / "model"), tmp_path / "it-ran"
    (place / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    automatic = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((place / name).read_text())
        content["auto_map"] = dict.fromkeys(automatic, "evil.Evil")
        (place / name).write_text(json.dumps(content))
    with CheckpointReader(place) as reader:
        assert reader.config.model_type == "llama"
    load_model(place, dtype="float32", device="cpu")
    assert load_tokenizer(place)("abc")["input_ids"]
    assert not marker.exists()


def test_hub_ids_are_checked_against_an_allow_list_pattern(client: TestClient) -> None:
    assert Settings.model_fields["hub_allow"].default == ()
    assert rejection_code(client, "hub", "allowed/model") is None
    assert rejection_code(client, "hub", "stranger/model") == "hub_not_allowed"
    for name in ("allowed/../stranger/model", "allowed/a/b", "https://x/allowed/model", "allowed"):
        assert rejection_code(client, "hub", name) == "malformed"


def test_local_paths_only_below_configured_roots_after_resolving_links(
    client: TestClient, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "models" / "m", weights_on_disk(tmp_path / "outside")
    weights_on_disk(inside)
    assert rejection_code(client, "path", inside) is None
    assert rejection_code(client, "path", outside) == "path_not_allowed"
    assert rejection_code(client, "path", inside / ".." / ".." / "outside") == "path_not_allowed"
    (tmp_path / "models" / "link").symlink_to(outside)
    assert rejection_code(client, "path", tmp_path / "models" / "link") == "path_not_allowed"
    (inside / "tokenizer.json").symlink_to("/etc/passwd")
    assert rejection_code(client, "path", inside) == "path_not_allowed"


def test_the_allow_lists_apply_to_every_source_of_a_mixture(
    client: TestClient, tmp_path: Path
) -> None:
    inside = tmp_path / "texts" / "a.txt"
    inside.parent.mkdir()
    inside.write_text("words")
    (inside.parent / "link.txt").symlink_to("/etc/passwd")
    (inside.parent / "twin.txt").symlink_to(inside)

    def rejected(*sources: object) -> list[tuple[str, str]]:
        mixture = [{"source": str(source)} for source in sources]
        compression = {"calibration": {"source": mixture}}
        answer = client.post("/v1/jobs", json=BODY | {"compression": compression})
        errors = answer.json().get("errors", ())
        return [(error["pointer"], error["code"]) for error in errors]

    def place(index: int) -> str:
        return f"/compression/calibration/source/{index}/source"

    assert rejected("pydoc", "pycode", "self", "chat", inside) == []
    assert rejected("pydoc", "/etc/passwd") == [(place(1), "path_not_allowed")]
    assert rejected(inside.parent / "link.txt", inside) == [(place(0), "path_not_allowed")]
    assert rejected("pydoc", "../etc/passwd", "hub:stranger/data@train") == [
        (place(1), "path_not_allowed"),
        (place(2), "hub_not_allowed"),
    ]
    # Two names of the same text are duplicates once links are resolved.
    assert rejected(inside, inside.parent / "twin.txt") == [(place(1), "duplicate_source")]


def test_a_mixture_cannot_contain_an_upload_of_another_project(closed: TestClient) -> None:
    resources: Resources = closed.app.state.resources  # type: ignore[attr-defined]
    owner, stranger = (Tenant(closed, project) for project in ("a", "b"))
    content = b"words " * 10
    file = UploadFile(name="a.txt", bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    request = UploadRequest(kind=UploadKind.TEXT, files=(file,))
    upload = uploads.create_upload(resources, owner.principal, request)
    part = uploads.expect_part(resources, upload.id, 0, 0)
    resources.store.put_new(part.key, content)
    uploads.complete_upload(resources, owner.principal, upload.id)
    upload_contents.verify(resources, upload.id)
    mixture = [{"source": "pydoc"}, {"source": f"upload:{upload.id}"}]
    body = BODY | {"compression": {"calibration": {"source": mixture}}}
    rejected = closed.post("/v1/jobs", json=body, headers=stranger.headers())
    (error,) = rejected.json()["errors"]
    assert error["pointer"] == "/compression/calibration/source/1/source"
    assert error["code"] == "upload_not_found"
    # The worker checks again, whatever the row contains.
    config = CompressionConfig.model_validate(body["compression"])
    with pytest.raises(UploadNotFoundError):
        upload_contents.fetch(resources, "b", make_request(compression=config), lambda: None)
    accepted = closed.post("/v1/jobs", json=body, headers=owner.headers())
    assert accepted.status_code == 202, accepted.text
    upload_contents.fetch(resources, "a", make_request(compression=config), lambda: None)
    assert (resources.uploads_dir / upload.id / "a.txt").read_bytes() == content
    # A queued job keeps the uploads of its mixture.
    used = closed.delete(f"/v1/uploads/{upload.id}", headers=owner.headers())
    assert used.json()["code"] == "upload_in_use"


def test_parameter_count_is_limited(settings: Settings, tmp_path: Path) -> None:
    small, large = (weights_on_disk(tmp_path / "models" / str(n), n) for n in (10, 11))
    limited = settings.model_copy(update={"max_parameters": 10})
    with TestClient(create_app(limited)) as client:
        assert rejection_code(client, "path", small) is None
        assert rejection_code(client, "path", large) == "model_too_large"


def test_sequence_length_is_limited(settings: Settings) -> None:
    limited = settings.model_copy(update={"max_sequence_length": 2047})
    with TestClient(create_app(limited)) as client:
        answer = client.post("/v1/jobs", json=BODY)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/compression/calibration/sequence_length"


def test_upload_size_is_limited(settings: Settings) -> None:
    limited = settings.model_copy(update={"max_upload_bytes": 10, "upload_quota_bytes": 25})
    with TestClient(create_app(limited)) as client:

        def announced(size: int) -> httpx.Response:
            file = {"name": "a.txt", "bytes": size, "sha256": "0" * 64}
            return client.post("/v1/uploads", json={"kind": "text", "files": [file]})

        assert announced(11).json()["errors"][0]["code"] == "too_large"
        assert [announced(10).status_code for _ in range(3)] == [201, 201, 422]
        part = announced(5).json()["files"][0]["parts"][0]["url"]
        assert client.put(part, content=bytes(6)).json()["code"] == "part_refused"


def test_runtime_is_limited(settings: Settings) -> None:
    limited = settings.model_copy(update={"max_runtime_s": 60})
    with TestClient(create_app(limited)) as client:
        rejected = client.post("/v1/jobs", json=BODY | {"max_runtime_s": 61})
        assert rejected.json()["errors"][0]["pointer"] == "/max_runtime_s"
        created = [client.post("/v1/jobs", json=BODY | more) for more in ({}, {"max_runtime_s": 5})]
        assert [job.json()["max_runtime_s"] for job in created] == [60, 5]


BOMBS: dict[str, bytes] = {
    # A header of 2 GiB in a sparse file of that size.
    "model.safetensors": (2**31).to_bytes(8, "little"),
    # A count of 2**62 settings, for which a naive reader would allocate memory.
    "model.gguf": b"GGUF\3\0\0\0" + bytes(8) + (2**62).to_bytes(8, "little"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_bomb_is_rejected_before_allocation(tmp_path: Path, name: str) -> None:
    place = weights_on_disk(tmp_path / "m")
    with (place / name).open("wb") as stream:
        stream.write(BOMBS[name])
        stream.truncate(2**31 + 64)
    target = place if name == "model.safetensors" else place / name
    code = (
        "import sys; from pathlib import Path\n"
        "from intraslice_core.errors import BrokenCheckpointError\n"
        "from intraslice_core.checkpoints.inspection import inspect_model\n"
        "try: inspect_model(Path(sys.argv[1]))\n"
        "except BrokenCheckpointError as error: print(error.code)\n"
    )

    def bounded() -> None:
        # Address space for the mapping of the file, but not for a copy of its claimed header.
        resource.setrlimit(resource.RLIMIT_AS, (2**31 + 512 * MIB, 2**31 + 512 * MIB))
        resource.setrlimit(resource.RLIMIT_DATA, (256 * MIB, 256 * MIB))

    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=bounded,
    )
    assert done.stdout.strip() == "broken_checkpoint", done.stderr


# -- Webhooks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.216.34/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://[::1]/",
    ],
)
def test_webhook_urls_must_be_https_and_resolve_to_public_addresses(
    client: TestClient, url: str
) -> None:
    assert Settings.model_fields["webhook_allow_loopback"].default is False
    good = client.post("/v1/webhooks", json={"url": "https://93.184.216.34/hook"})
    assert good.status_code == 201, good.text
    rejected = client.post("/v1/webhooks", json={"url": url})
    assert rejected.status_code == 422
    assert rejected.json()["errors"][0]["pointer"] == "/url"


# -- Limits and traces -------------------------------------------------------------------------


def test_requests_are_limited_per_key(settings: Settings) -> None:
    limits = {"requests_per_second": 0.001, "requests_burst": 1, "auth": "on"}
    with TestClient(create_app(Settings(**settings.model_dump() | limits))) as client:
        resources: Resources = client.app.state.resources  # type: ignore[attr-defined]
        for headers in (bearer(key_of(resources)), bearer(key_of(resources))):
            statuses = [client.get("/v1/jobs", headers=headers).status_code for _ in range(2)]
            assert statuses == [200, 429]


def test_wrong_keys_are_limited_per_address(settings: Settings) -> None:
    limits = {"wrong_keys_per_minute": 0.06, "wrong_keys_burst": 1, "auth": "on"}
    app = create_app(Settings(**settings.model_dump() | limits))
    with TestClient(app, client=("192.0.2.1", 1)) as client:
        wrong = {"authorization": "Bearer wrong"}
        statuses = [client.get("/v1/jobs", headers=wrong).status_code for _ in range(2)]
        assert statuses == [401, 429]
        resources: Resources = client.app.state.resources  # type: ignore[attr-defined]
        assert client.get("/v1/jobs", headers=bearer(key_of(resources))).status_code == 200


def test_body_size_is_limited(client: TestClient) -> None:
    answer = client.post("/v1/jobs", content=b"x" * 1_048_577)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


SECRETS = {
    "INTRASLICE_API_KEY": "marked-operators-key-4711",
    "INTRASLICE_API_KEY_PREVIOUS": "marked-former-operators-key-4711",
    "INTRASLICE_SIGNING_KEY": "marked-signing-key-4711",
    "INTRASLICE_SIGNING_KEY_PREVIOUS": "marked-former-signing-key-4711",
}


def spying_child(request: ChildRequest, log: Path) -> ChildProcess:
    """Start an engine that prints its input and environment, which become the job's error."""
    code = (
        "import os, sys; words = sys.stdin.read() + repr(dict(os.environ));"
        "sys.stderr.write(words.replace(chr(10), ' ')[-480:] + '\\n'); sys.exit(3)"
    )
    return ChildProcess(request, log, (sys.executable, "-c", code))


def everything_in(database_url: str) -> str:
    """Return all rows of all tables as text."""
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        return "\n".join(
            str(connection.execute(f"SELECT row_to_json(t)::text FROM {table} AS t").fetchall())
            for table in metadata.tables
        )


def test_secrets_are_never_in_rows_logs_or_events(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    values = settings.model_dump() | {
        "auth": "on",
        "api_key": SECRETS["INTRASLICE_API_KEY"],
        "signing_key": SECRETS["INTRASLICE_SIGNING_KEY"],
    }
    operator = {"authorization": f"Bearer {SECRETS['INTRASLICE_API_KEY']}"}
    with (
        structlog.testing.capture_logs() as logs,
        TestClient(create_app(Settings(**values)), raise_server_exceptions=False) as client,
    ):
        resources: Resources = client.app.state.resources  # type: ignore[attr-defined]
        secret = client.post(
            "/v1/keys", json={"name": "x", "scope": "admin"}, headers=operator
        ).json()["secret"]
        link = _use_everything(client, resources, {"authorization": f"Bearer {secret}"}, secret)
        events = client.get("/v1/jobs?limit=100", headers=operator).text
    output = capfd.readouterr()
    seen = "\n".join([everything_in(settings.database_url), events, str(logs), *output])
    assert "marked-label" in seen, "the run left no trace, so its absence proves nothing"
    assert "exit code 3" in seen
    signature = link.rpartition("signature=")[2]
    for hidden in (*SECRETS.values(), secret, signature):
        assert hidden not in seen


def _use_everything(
    client: TestClient, resources: Resources, headers: dict[str, str], secret: str
) -> str:
    """Send valid and invalid requests, with the secret in wrong places, and run a failing job."""
    body = BODY | {"labels": {"a": "marked-label"}}
    job = client.post("/v1/jobs", json=body, headers=headers | {"idempotency-key": "k"}).json()
    run_next_job(resources, "worker-1", threading.Event(), spying_child)
    link = resources.signer.sign(job["id"], "config.json", 60)
    assert client.get(link).status_code == 404
    for wrong in (
        client.get(f"/v1/jobs/{secret}", headers=headers),
        client.delete(f"/v1/keys/{secret}", headers=headers),
        client.get("/v1/jobs", params={"after": secret}, headers=headers),
        client.post("/v1/jobs", json={"model": secret}, headers=headers),
        client.get("/v1/jobs", headers={"authorization": f"Basic {secret}"}),
        client.get("/v1/jobs", headers={"authorization": f"Bearer {secret}0"}),
    ):
        assert 400 <= wrong.status_code < 500
    return link


def test_every_mutating_call_is_in_the_audit_log(closed: TestClient) -> None:
    tenant = Tenant(closed, "audited")
    for operation in CHANGES:
        before = _lines(tenant)
        answer = call(operation, tenant, tenant.headers())
        (line,) = [line for line in _lines(tenant) if line not in before]
        assert (line["method"], line["route"]) == (operation.method.upper(), _template(operation))
        assert line["status"] == answer.status_code
        assert line["key"] == tenant.key(Scope.ADMIN).id
        assert line["request_id"] == answer.headers["x-request-id"]


def _lines(tenant: Tenant) -> list[Any]:
    lines: list[Any] = tenant.client.get(
        "/v1/audit", params={"limit": 100}, headers=tenant.headers()
    ).json()["data"]
    return lines


def _template(operation: Operation) -> str:
    return re.sub(r":path}", "}", operation.path)


# -- A server as started by a deployment ----------------------------------------------------------


def test_the_log_of_the_server_contains_no_secret(settings: Settings, resources: Resources) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **SECRETS,
        "PYTHONPATH": str(REPOSITORY),
        "INTRASLICE_DATABASE_URL": settings.database_url,
        "INTRASLICE_BROKER_URL": settings.broker_url,
        "INTRASLICE_DATA_DIR": str(settings.data_dir),
        "INTRASLICE_PORT": str(port),
    }
    issued = key_of(resources)
    server = subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "serve"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _wait_until_alive(server, port)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert client.get("/v1/jobs", headers=bearer(issued)).status_code == 200
            former = {"authorization": f"Bearer {SECRETS['INTRASLICE_API_KEY_PREVIOUS']}"}
            assert client.get("/v1/jobs", headers=former).status_code == 200
            link = "/v1/downloads/job_x/marked-name?expires=1&signature=marked-signature"
            assert client.get(link).status_code == 403
    finally:
        server.terminate()
        log, _ = server.communicate(timeout=60)
    assert "/v1/downloads/job_x/marked-name" in log
    assert "the previous operator key is still in use" in log
    for hidden in (*SECRETS.values(), issued.secret, "marked-signature"):
        assert hidden not in log


def _wait_until_alive(server: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, server.communicate()[0]
        try:
            httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server did not start")
