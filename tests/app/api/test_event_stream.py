"""The event stream over real sockets, since TestClient waits for the end of a response."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx_sse import ServerSentEvent, connect_sse

from app.domain.job import Job, Progress
from app.domain.job_log import LogLevel, NewLogLine
from app.domain.lifecycle import TERMINAL, State
from app.domain.principal import OPERATOR, Scope
from app.services import claims, job_log, jobs, keys
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.progress import Stage
from tests.app.api.serving import serving
from tests.app.builders import bearer, in_state, key_of, queued, running, succeeded

pytestmark = [pytest.mark.postgres, pytest.mark.broker, pytest.mark.timeout(60)]


@pytest.fixture
def served(settings: Settings) -> Iterator[tuple[httpx.Client, FastAPI]]:
    with serving(settings) as (url, app), httpx.Client(base_url=url, timeout=30) as http:
        yield http, app


def stream(http: httpx.Client, job: Job, after: int | None = None) -> Iterator[ServerSentEvent]:
    headers = {"Last-Event-ID": str(after)} if after is not None else {}
    with connect_sse(http, "GET", f"/v1/jobs/{job.id}/events/stream", headers=headers) as source:
        assert source.response.status_code == 200
        yield from source.iter_sse()


def log_progress(resources: Resources, job: Job, layer: int, *, log: bool = True) -> None:
    progress = Progress(fraction=layer / 1000, message=f"layer\u2028{layer}\n", layer=layer)
    claims.record_progress(resources, job.lease, Stage.COMPRESS, progress, log=log)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_the_stream_of_an_ended_job_is_its_log(
    client: TestClient, resources: Resources, state: State
) -> None:
    job = in_state(resources, state)
    response = client.get(f"/v1/jobs/{job.id}/events/stream")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    listed = client.get(f"/v1/jobs/{job.id}/events").json()["data"]
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines())
        for block in response.text.split("\n\n")
        if block
    ]
    assert [json.loads(block["data"]) for block in blocks] == listed
    assert [int(block["id"]) for block in blocks] == [event["sequence"] for event in listed]
    assert [block["event"] for block in blocks] == [event["type"] for event in listed]
    assert blocks[-1]["event"] == state


def test_a_browser_that_received_all_events_gets_no_content_and_stops_reconnecting(
    client: TestClient, resources: Resources
) -> None:
    job = in_state(resources, State.CANCELLED)
    url = f"/v1/jobs/{job.id}/events/stream"
    last = client.get(f"/v1/jobs/{job.id}/events").json()["data"][-1]["sequence"]
    answer = client.get(url, headers={"Last-Event-ID": str(last)})
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get(url, params={"after": last}).status_code == 204
    rest = client.get(url, params={"after": 0}, headers={"Last-Event-ID": str(last - 1)})
    assert rest.text.count("id: ") == 1


def test_errors_are_returned_before_the_stream_begins(client: TestClient) -> None:
    missing = client.get("/v1/jobs/job_00000000000000000000000000/events/stream")
    assert (missing.status_code, missing.json()["code"]) == (404, "job_not_found")
    for value in ("x", "-1", str(2**31)):
        rejected = client.get("/v1/jobs/job/events/stream", headers={"Last-Event-ID": value})
        assert rejected.json()["errors"][0]["pointer"] == "header:last-event-id"


def test_events_arrive_as_they_happen_with_live_progress_between_them(
    served: tuple[httpx.Client, FastAPI], resources: Resources
) -> None:
    job = running(resources)
    messages = stream(served[0], job)
    assert [next(messages).event for _ in range(2)] == ["queued", "started"]
    assert json.loads(next(messages).data)["progress"] is None
    log_progress(resources, job, 1, log=False)
    live = next(messages)
    assert live.event == "live"
    assert json.loads(live.data)["progress"]["layer"] == 1
    assert live.id == "2"  # live messages have no id: the parser keeps the last, as browsers do
    log_progress(resources, job, 2)
    logged = next(messages)
    assert (logged.event, logged.id) == ("progress", "3")
    assert json.loads(logged.data)["data"]["message"] == "layer\u20282\n"
    succeeded(resources, job)
    assert [message.event for message in messages][-1] == "succeeded"


def test_reconnecting_clients_receive_every_event_exactly_once(
    served: tuple[httpx.Client, FastAPI], resources: Resources
) -> None:
    job = running(resources)
    layers = 60

    def work() -> None:
        for layer in range(layers):
            log_progress(resources, job, layer, log=layer % 3 > 0)
        succeeded(resources, job)

    def read(patience: int) -> list[int]:
        """Disconnect after some messages and reconnect with the last id, until the end."""
        ids: list[int] = []
        ended = False
        while not ended:
            left = patience
            for message in stream(served[0], job, ids[-1] if ids else None):
                if message.event != "live":
                    ids.append(int(message.id))
                ended = message.event == "succeeded"
                left -= 1
                if not left:
                    break
        return ids

    with ThreadPoolExecutor() as threads:
        readers = [threads.submit(read, patience) for patience in (4, 11, 10_000)]
        threads.submit(work).result()
        expected = list(range(1, 4 + layers * 2 // 3))
        assert [reader.result() for reader in readers] == [expected] * 3


def test_log_lines_are_sent_on_request_in_one_order_with_the_events(
    client: TestClient, resources: Resources
) -> None:
    job = running(resources)
    lines = [
        NewLogLine(time=job.created_at, level=LogLevel.INFO, event=name) for name in ("a", "b")
    ]
    job_log.record_lines(resources, job.lease, lines)
    log_progress(resources, job, 1)
    job_log.record_lines(resources, job.lease, lines[:1])
    succeeded(resources, job)
    url = f"/v1/jobs/{job.id}/events/stream"

    def received(last: int, **query: bool) -> list[tuple[int, str]]:
        """Return ids and types of the messages after the last id."""
        text = client.get(url, params=query, headers={"Last-Event-ID": str(last)}).text
        fields = re.findall(r"^(event|id): (.*)$", text, re.M)
        names = [value for name, value in fields if name == "event"]
        ids = [int(value) for name, value in fields if name == "id"]
        return list(zip(ids, names, strict=True))

    events = [(1, "queued"), (2, "started"), (5, "progress"), (7, "succeeded")]
    assert received(0) == events
    assert received(0, logs=True) == sorted([*events, (3, "log"), (4, "log"), (6, "log")])
    assert received(3, logs=True) == [(4, "log"), *events[2:3], (6, "log"), events[3]]
    assert client.get(url, params={"logs": True, "after": 7}).status_code == 204


def test_heartbeats_are_sent_while_nothing_happens(
    settings: Settings, resources: Resources
) -> None:
    job = queued(resources)
    brisk = settings.model_copy(update={"stream_heartbeat_seconds": 0.02})
    with (
        serving(brisk) as (url, _),
        httpx.stream("GET", f"{url}/v1/jobs/{job.id}/events/stream") as response,
    ):
        comments = (line for line in response.iter_lines() if line.startswith(":"))
        assert [next(comments) for _ in range(3)] == [": heartbeat"] * 3


def test_the_open_stream_of_a_revoked_key_ends(settings: Settings, resources: Resources) -> None:
    job, issued = running(resources), key_of(resources, Scope.READ)
    brisk = settings.model_copy(update={"stream_heartbeat_seconds": 0.05, "auth": "on"})
    with (
        serving(brisk) as (url, _app),
        httpx.Client(base_url=url, headers=bearer(issued), timeout=30) as http,
        http.stream("GET", f"/v1/jobs/{job.id}/events/stream") as response,
    ):
        lines = response.iter_lines()
        assert next(line for line in lines if line == ": heartbeat")
        keys.revoke_key(resources, OPERATOR, issued.id)
        for _line in lines:
            continue
    assert jobs.get_job(resources, OPERATOR, job.id).state is State.RUNNING


def test_watches_of_disconnected_clients_are_removed(
    served: tuple[httpx.Client, FastAPI], resources: Resources
) -> None:
    http, app = served
    url = f"{http.base_url}/v1/jobs/{queued(resources).id}"
    with httpx.stream("GET", f"{url}/events/stream"):
        assert app.state.watching.job_count == 1
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(url, params={"wait": 60}, timeout=0.3)
    while app.state.watching.job_count:
        time.sleep(0.01)


def test_the_server_shuts_down_cleanly_while_streams_are_open(
    settings: Settings, resources: Resources, tmp_path: Path, unused_tcp_port: int
) -> None:
    job = queued(resources)
    environment = os.environ | {
        "INTRASLICE_DATABASE_URL": settings.database_url,
        "INTRASLICE_BROKER_URL": settings.broker_url,
        "INTRASLICE_DATA_DIR": str(tmp_path / "served"),
        "INTRASLICE_AUTH": "off",
        "INTRASLICE_PORT": str(unused_tcp_port),
        # Longer than this test, so that the limit does not end the streams.
        "INTRASLICE_DRAIN_SECONDS": "3600",
    }
    command = [sys.executable, "-m", "app.cli.main", "serve"]
    process = subprocess.Popen(command, env=environment)
    try:
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{unused_tcp_port}", timeout=30) as http,
            ThreadPoolExecutor() as threads,
        ):
            wait_until_alive(http)
            messages = stream(http, job)
            assert [next(messages).event for _ in range(2)] == ["queued", "live"]
            poll = threads.submit(http.get, f"/v1/jobs/{job.id}", params={"wait": 60})
            process.send_signal(signal.SIGTERM)
            assert list(messages) == []  # a lost connection would raise
            poll.exception()  # answered, or rejected because the port was closed
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def wait_until_alive(http: httpx.Client) -> None:
    while True:
        try:
            http.get("/livez")
            return
        except httpx.ConnectError:
            time.sleep(0.05)
