"""Links of the service that lead to another host: a client reaches it, or names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.main import app
from app.domain.lifecycle import State
from app.embedded.seaweed import EmbeddedS3
from app.services.resources import Resources
from app.settings import Settings
from intraslice_client import Client, StoreError, StoreUnreachableError, UnexpectedResponseError
from tests.app.api.serving import serving
from tests.app.builders import in_state, weights_on_disk
from tests.app.forwarding import forwarding

pytestmark = [pytest.mark.postgres, pytest.mark.broker, pytest.mark.object_store]
HINT = "set INTRASLICE_STORE_PUBLIC_ENDPOINT, or INTRASLICE_DOWNLOADS=proxy on the server"


@pytest.fixture
def artifact_store(s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{s3_server.url}/client-links"


@contextmanager
def service(settings: Settings, endpoint: str) -> Iterator[tuple[Client, str]]:
    """Serve with links to `endpoint`; yield an impatient client and the URL."""
    changed = settings.model_copy(update={"store_public_endpoint": endpoint})
    with serving(changed) as (url, _), Client(url, patience=0.0) as client:
        yield client, url


def test_files_and_models_pass_through_the_public_endpoint(
    settings: Settings, resources: Resources, s3_server: EmbeddedS3, tmp_path: Path
) -> None:
    with (
        forwarding(s3_server.endpoint) as forwarder,
        service(settings, f"http://localhost:{forwarder.port}") as (client, _),
    ):
        job = in_state(resources, State.SUCCEEDED)
        assert len(client.jobs.download(job.id, tmp_path / "out")) == 4
        assert client.uploads.model(weights_on_disk(tmp_path / "model")).state == "ready"
        methods = [request.method for request in forwarder.requests]
    assert methods == ["GET"] * 4 + ["PUT"] * 2


def test_files_and_models_pass_through_the_api(
    settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    with serving(settings) as (url, _), Client(url, patience=0.0) as client:
        job = in_state(resources, State.SUCCEEDED)
        assert len(client.jobs.download(job.id, tmp_path / "out")) == 4
        assert client.uploads.model(weights_on_disk(tmp_path / "model")).state == "ready"


def test_an_unreachable_store_is_named(
    settings: Settings, resources: Resources, unused_tcp_port: int, tmp_path: Path
) -> None:
    with service(settings, f"http://localhost:{unused_tcp_port}") as (client, _):
        job = in_state(resources, State.SUCCEEDED)
        with pytest.raises(StoreUnreachableError, match=HINT) as download:
            client.jobs.download(job.id, tmp_path / "out")
        with pytest.raises(StoreUnreachableError, match=HINT) as upload:
            client.uploads.model(weights_on_disk(tmp_path / "model"))
    for caught in (download, upload):
        assert caught.value.host == f"localhost:{unused_tcp_port}"
        assert f"the artifact store at localhost:{unused_tcp_port}" in str(caught.value)


def test_an_error_of_the_store_names_it(
    settings: Settings, resources: Resources, s3_server: EmbeddedS3, tmp_path: Path
) -> None:
    """A proxy that replaces the Host header makes the bucket reject every signature."""
    with (
        forwarding(s3_server.endpoint) as forwarder,
        service(settings, f"http://localhost:{forwarder.port}") as (client, _),
    ):
        forwarder.host = "s3"
        job = in_state(resources, State.SUCCEEDED)
        with pytest.raises(StoreError, match="HTTP 403 SignatureDoesNotMatch") as download:
            client.jobs.download(job.id, tmp_path / "out")
        with pytest.raises(StoreError, match="HTTP 403 SignatureDoesNotMatch") as upload:
            client.uploads.model(weights_on_disk(tmp_path / "model"))
    for caught in (download, upload):
        assert (caught.value.host, caught.value.status) == (f"localhost:{forwarder.port}", 403)
        assert HINT in str(caught.value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Client.__init__, "__kwdefaults__", {"patience": 0.0, "http": None})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_one_line(ended: Result, code: int, *words: str) -> None:
    assert ended.exit_code == code, ended.output
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert ended.exception is None or isinstance(ended.exception, SystemExit)


@pytest.mark.usefixtures("impatient")
def test_commands_name_an_unreachable_store_in_one_line(
    settings: Settings, resources: Resources, unused_tcp_port: int, tmp_path: Path
) -> None:
    host = f"localhost:{unused_tcp_port}"
    with service(settings, f"http://{host}") as (_, url):
        job = in_state(resources, State.SUCCEEDED)
        submit = command("submit", weights_on_disk(tmp_path / "model"), "--url", url)
        assert_one_line(submit, 5, host, HINT)
        download = command("download", job.id, tmp_path / "out", "--url", url)
        assert_one_line(download, 5, host, HINT)


@pytest.mark.usefixtures("impatient")
def test_commands_report_the_errors_of_local_files_in_one_line(
    settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    model = weights_on_disk(tmp_path / "model")
    (model / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("no directory")
    with serving(settings) as (url, _):
        job = in_state(resources, State.SUCCEEDED)
        assert_one_line(command("submit", model, "--url", url), 1, "dangling.safetensors")
        download = command("download", job.id, tmp_path / "file", "--url", url)
        assert_one_line(download, 2, str(tmp_path / "file"))


@pytest.mark.usefixtures("impatient")
def test_another_service_at_the_url_is_an_error_in_one_line(s3_server: EmbeddedS3) -> None:
    other = f"{s3_server.endpoint}/healthz?"
    with Client(other) as client, pytest.raises(UnexpectedResponseError, match="HTTP 200"):
        client.models()
    assert_one_line(command("list", "--url", other), 1, "is an IntraSlice service")
    assert_one_line(command("list", "--url", "http://host:port"), 2, "'http://host:port' is inv")
    missing = command("list", "--url", "nowhere")
    assert (missing.exit_code, "Traceback" in missing.output) == (5, False)
    assert missing.stderr.startswith("error: no service answers at nowhere: ")
