"""examples/reverse_proxy: nginx in front of two API processes, and the form of the Caddyfile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from httpx_sse import connect_sse

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.valkey import EmbeddedValkey
from app.settings import Settings
from benchmarks.deployment import NGINX_CONFIGURATION
from intraslice_client import Client, ModelSource
from tests.app.builders import BODY
from tests.app.databases import new_database
from tests.app.environment import environment_of
from tests.deployment.compose import REPOSITORY
from tests.deployment.test_processes import free_port, wait_until_ready

KEY = "the-operators-key"
MODEL = ModelSource.model_validate(BODY["model"])
PART = 64 * 2**20
EXAMPLES = REPOSITORY / "examples" / "reverse_proxy"
CERTIFICATE = REPOSITORY / "tests" / "app" / "adapters" / "localhost.pem"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
CADDY = shutil.which("caddy")
pytestmark = [pytest.mark.postgres, pytest.mark.broker]
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


class Site:
    """Two API processes behind nginx."""

    def __init__(self, directory: Path, settings: Settings, ports: list[int]) -> None:
        self.directory = directory
        self._settings = settings
        self.ports = ports
        """Ports of the API processes."""
        self.tls_port, self.plain_port = free_port(), free_port()
        self.apis: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"https://localhost:{self.tls_port}"

    def client(self, address: str, key: str | None = KEY, port: int | None = None) -> httpx.Client:
        """Return a client with the source address, of nginx or of the API at a port."""
        return httpx.Client(
            base_url=self.url if port is None else f"http://127.0.0.1:{port}",
            transport=httpx.HTTPTransport(
                local_address=address, verify=ssl.create_default_context(cafile=str(CERTIFICATE))
            ),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=60,
        )

    def requests(self, number: int) -> list[dict[str, object]]:
        """Return the lines that an API has logged about requests."""
        lines = (self.directory / f"api{number}.log").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["event"] == "request"]

    @contextmanager
    def api(self, number: int) -> Iterator[None]:
        environment = {
            **os.environ,
            **environment_of(self._settings),
            "INTRASLICE_PORT": str(self.ports[number]),
        }
        log = self.directory / f"api{number}.log"
        with started(
            [sys.executable, "-P", "-m", "app.cli.main", "serve"], log, environment
        ) as process:
            self.apis.append(process)
            with self.client("127.0.0.1", port=self.ports[number]) as client:
                wait_until_ready(client, log)
            yield

    @contextmanager
    def nginx(self) -> Iterator[None]:
        configuration = self.directory / "nginx.conf"
        configuration.write_text(self._configuration())
        log = self.directory / "nginx.log"
        command = [str(NGINX), "-p", str(self.directory), "-c", str(configuration), "-e", "stderr"]
        with started(command, log, dict(os.environ)) as process:
            deadline = time.monotonic() + 30
            with self.client("127.0.0.1") as client:
                while True:
                    try:
                        client.get("/livez").raise_for_status()
                        break
                    except httpx.TransportError:
                        assert process.poll() is None, log.read_text()
                        assert time.monotonic() < deadline, log.read_text()
            yield

    def _configuration(self) -> str:
        example = (EXAMPLES / "nginx.conf").read_text()
        for line, replacement in {
            "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{self.tls_port} ssl http2;",
            "/etc/ssl/intraslice/fullchain.pem": str(CERTIFICATE),
            "/etc/ssl/intraslice/privkey.pem": str(CERTIFICATE),
            "server 127.0.0.1:8000 ": f"server 127.0.0.1:{self.ports[0]} ",
            "server 127.0.0.1:8001 ": f"server 127.0.0.1:{self.ports[1]} ",
        }.items():
            assert example.count(line) == 1, line
            example = example.replace(line, replacement)
        # As root nginx would give up its rights, and could not enter the test's directory.
        user = "user root root;" if os.geteuid() == 0 else ""
        return NGINX_CONFIGURATION.format(directory=self.directory, user=user, example=example)


@contextmanager
def started(
    command: list[str], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def site(
    postgres_server: EmbeddedPostgres,
    valkey_server: EmbeddedValkey,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    with new_database(postgres_server) as database_url:
        yield from _site(directory, database_url, valkey_server.url)


def _site(directory: Path, database_url: str, broker_url: str) -> Iterator[Site]:
    # A database of its own: that of other tests has claimed their store.
    settings = Settings(
        data_dir=directory / "data",
        database_url=database_url,
        broker_url=broker_url,
        api_key=KEY,
        forwarded_allow_ips="127.0.0.1",
        wrong_keys_per_minute=0.1,
        requests_burst=1_000_000,
        drain_notice_seconds=0.5,
    )
    site = Site(directory, settings, [free_port(), free_port()])
    with ExitStack() as stack:
        for number in range(2):
            stack.enter_context(site.api(number))
        stack.enter_context(site.nginx())
        yield site


def wrong_keys(client: httpx.Client, number: int, **headers: str) -> list[int]:
    wrong = {**headers, "Authorization": "Bearer wrong"}
    return [client.get("/v1/jobs", headers=wrong).status_code for _ in range(number)]


@needs_nginx
def test_wrong_keys_lock_out_the_address_that_sent_them(site: Site) -> None:
    with site.client("127.0.0.2") as attacker, site.client("127.0.0.3") as operator:
        # Neither of the forged addresses is believed: the first would not be locked out, the
        # second would be.
        assert wrong_keys(attacker, 10, **{"X-Forwarded-For": "203.0.113.1"}) == [401] * 10
        assert wrong_keys(attacker, 10, **{"X-Forwarded-For": "127.0.0.3"}) == [401] * 10
        assert set(wrong_keys(attacker, 4)) == {429}
        assert attacker.get("/v1/jobs").status_code == 429
        assert operator.get("/v1/jobs").status_code == 200
        assert wrong_keys(operator, 1) == [401]
    clients = {str(entry["client"]) for number in (0, 1) for entry in site.requests(number)}
    assert {"127.0.0.2", "127.0.0.3"} <= clients
    assert "203.0.113.1" not in clients


@needs_nginx
def test_a_client_that_connects_directly_cannot_forge_its_address(site: Site) -> None:
    with site.client("127.0.0.5", port=site.ports[0]) as attacker:
        forged = [
            status
            for number in range(24)
            for status in wrong_keys(attacker, 1, **{"X-Forwarded-For": f"203.0.113.{number}"})
        ]
    assert forged == [401] * 20 + [429] * 4
    assert "127.0.0.5" in {entry["client"] for entry in site.requests(0)}


@needs_nginx
def test_redirects_keep_the_scheme_and_the_host(site: Site) -> None:
    with site.client("127.0.0.6") as client:
        answer = client.get("/v1/jobs/")
        assert (answer.status_code, answer.headers["location"]) == (307, f"{site.url}/v1/jobs")
        plain = client.get(f"http://localhost:{site.plain_port}/v1/jobs?limit=1")
        location = "https://localhost/v1/jobs?limit=1"
        assert (plain.status_code, plain.headers["location"]) == (308, location)
        job = client.post("/v1/jobs", json=BODY)
        assert job.headers["location"] == job.json()["urls"]["self"]


@needs_nginx
def test_events_arrive_before_the_job_ends(site: Site) -> None:
    with site.client("127.0.0.6") as client:
        job = client.post("/v1/jobs", json=BODY).raise_for_status().json()
        path = f"/v1/jobs/{job['id']}/events/stream"
        with connect_sse(client, "GET", path) as source:
            events = source.iter_sse()
            first = next(events)
            assert client.get(job["urls"]["self"]).json()["state"] == "queued"
            client.post(f"{job['urls']['self']}/cancel").raise_for_status()
            names = [first.event, *(event.event for event in events)]
    assert names[0] == "queued"
    assert names[-1] == "cancelled"


@needs_nginx
def test_a_part_of_64_mib_passes(site: Site) -> None:
    content = bytes(PART)
    digest = hashlib.sha256(content).hexdigest()
    file = {"name": "texts.jsonl", "bytes": PART, "sha256": digest}
    with site.client("127.0.0.6") as client:
        upload = client.post("/v1/uploads", json={"kind": "text", "files": [file]})
        (part,) = upload.raise_for_status().json()["files"][0]["parts"]
        assert client.put(part["url"], content=content).is_success
        upload = client.get(upload.headers["location"]).raise_for_status()
        (part,) = upload.json()["files"][0]["parts"]
        assert part["url"] is None
        too_large = client.put("/v1/uploads/x", content=bytes(73 * 2**20))
        assert (too_large.status_code, "nginx" in too_large.text) == (413, True)


@needs_nginx
def test_one_of_two_apis_stops_without_failed_requests(site: Site) -> None:
    before = [len(site.requests(number)) for number in (0, 1)]
    enough = threading.Event()
    statuses: list[int] = []

    def read() -> None:
        with site.client("127.0.0.7") as client:
            while not enough.is_set():
                statuses.append(client.get("/v1/jobs").status_code)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        wait_until(lambda: all(len(site.requests(n)) > before[n] + 10 for n in (0, 1)))
        site.apis[0].terminate()
        with Client(site.url, http=site.client("127.0.0.7")) as client:
            jobs = []
            while site.apis[0].poll() is None:
                jobs.append(client.jobs.create(MODEL).id)
            reached = len(statuses) + 20
            wait_until(lambda: len(statuses) > reached)
    finally:
        enough.set()
        for reader in readers:
            reader.join()
    assert site.apis[0].wait() == 0
    assert set(statuses) == {200}
    assert len(set(jobs)) == len(jobs) > 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(CADDY is None, reason="caddy is not installed")
def test_the_caddyfile_is_valid(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(CADDY), "validate", "--adapter", "caddyfile", "--config", str(EXAMPLES / "Caddyfile")],
        env={**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
