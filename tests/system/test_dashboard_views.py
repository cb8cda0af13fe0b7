"""Views of the dashboard in a real browser: layout, accessibility, outages, keys, size."""

from __future__ import annotations

import re
from typing import Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from app.domain.job_log import LogLevel, NewLogLine
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR, Scope
from app.services import job_log, jobs
from app.services.resources import Resources
from app.settings import Settings
from tests.app.api.serving import serving
from tests.app.builders import claim_job, in_state, key_of, queued
from tests.app.fleets import CPU, gpu, register, with_long_leases
from tests.browsing import IN_BROWSER, chromium, opened

browser = chromium
NARROW = 390
LINE = 24
"""Height of a line in pixels, with its distance from the next."""
Colour = Literal["light", "dark"]
COLOURS: tuple[Colour, ...] = ("light", "dark")
CHECKED: dict[int, tuple[Colour, ...]] = {1440: COLOURS, 1280: (), NARROW: COLOURS[:1]}
"""Colours in which a view of a width is checked for accessibility."""
VIEWS = (
    *("jobs", "new", "new?sweep", "sweeps", "compare", "models", "datasets", "workers"),
    *("keys", "webhooks", "audit", "jobs/job_missing", "sweeps/sweep_missing", "nowhere"),
)

pytestmark = [*IN_BROWSER, pytest.mark.postgres, pytest.mark.broker]


def test_missing_workers_are_reported(browser: Browser, settings: Settings) -> None:
    # The registry expires workers after six times this.
    slow = settings.model_copy(update={"maintenance_seconds": 20.0})
    with serving(slow) as (url, app):
        page, _log = opened(browser, url)
        expect(page.get_by_text("No workers are running")).to_be_visible()
        app.state.resources.workers.announce("somebody")
        expect(page.get_by_text("No workers are running")).to_be_hidden()
        expect(page.get_by_text("1 worker idle")).to_be_visible()
        page.close()


def test_a_narrow_screen_shows_a_job_in_few_lines(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    in_state(resources, State.SUCCEEDED)
    with serving(settings) as (url, _):
        page, _log = opened(browser, url, NARROW)
        sizes = page.get_by_text("3.91 KiB → 2.73 KiB")
        perplexities = page.get_by_text("10.0 → 12.0")
        for text in (page.locator("td .state"), sizes, perplexities, page.locator("td time")):
            box = text.bounding_box()
            assert box is not None
            assert 0 <= box["x"] < box["x"] + box["width"] <= NARROW
        row = page.get_by_role("table").get_by_role("row").last.bounding_box()
        assert row is not None
        assert row["height"] <= 5 * LINE
        expect(page.get_by_role("table").get_by_role("row")).to_have_count(2)
        page.close()


def test_a_narrow_screen_compares_jobs_side_by_side(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    first, second = (in_state(resources, State.SUCCEEDED).id for _ in range(2))
    with serving(settings) as (url, _):
        page, _log = opened(browser, f"{url}/#/compare?jobs={first},{second}", NARROW)
        results = page.get_by_role("region", name="Results")
        for link in results.get_by_role("link").all():
            box = link.bounding_box()
            assert box is not None
            assert 0 <= box["x"] < box["x"] + box["width"] <= NARROW
        page.close()


def test_a_webhook_is_created_tested_and_deleted(
    browser: Browser, settings: Settings, unused_tcp_port: int
) -> None:
    local = settings.model_copy(update={"webhook_allow_loopback": True})
    with serving(local) as (url, _):
        page, log = opened(browser, f"{url}/#/webhooks")
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_label("URL to notify when a job ends").fill(
            f"http://127.0.0.1:{unused_tcp_port}/"
        )
        page.get_by_role("button", name="Create webhook").click()
        expect(page.get_by_text(re.compile("^whsec_"))).to_be_visible()
        page.get_by_role("button", name="Send test").click()
        expect(page.get_by_role("region", name="Deliveries").get_by_role("row")).to_have_count(2)
        page.get_by_role("button", name="Delete", exact=True).click()
        expect(page.get_by_role("region", name="Webhooks")).to_have_count(0)
        assert log.errors == []
        page.close()


def test_the_keyboard_suffices(browser: Browser, settings: Settings, resources: Resources) -> None:
    job = queued(resources)
    with serving(settings) as (url, _):
        page, _log = opened(browser, url)
        expect(page.get_by_role("link", name=job.id)).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent").endswith(job.id):
                break
        page.keyboard.press("Enter")
        expect(page.locator("h1 .state.queued")).to_be_visible()
        expect(page.locator("main")).to_be_focused()
        for _ in range(6):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "Cancel":
                break
        page.keyboard.press("Space")
        expect(page.locator("h1 .state.cancelled")).to_be_visible()
        page.close()


def test_a_job_is_polled_where_streams_are_blocked(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = queued(resources)
    with serving(settings) as (url, _):
        page = browser.new_page()
        page.route("**/events/stream*", lambda route: route.abort())
        page.goto(f"{url}/#/jobs/{job.id}")
        expect(page.locator("h1 .state.queued")).to_be_visible()
        jobs.cancel_job(resources, OPERATOR, job.id)
        expect(page.locator("h1 .state.cancelled")).to_be_visible()
        expect(page.get_by_role("tab", name="Log 2")).to_be_visible()
        page.close()


def test_the_page_recovers_from_an_outage(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    with serving(settings) as (url, _):
        page, _log = opened(browser, url)
        expect(page.get_by_text("No jobs yet")).to_be_visible()
    expect(page.get_by_text("The service is not responding")).to_be_visible()
    job = queued(resources)
    with serving(settings, int(url.rpartition(":")[2])):
        expect(page.get_by_text("The service is not responding")).to_be_hidden()
        expect(page.get_by_role("link", name=job.id)).to_be_visible()
        page.close()


def test_login_rejects_an_invalid_key_and_respects_scopes(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    reader, admin = (key_of(resources, scope).secret for scope in (Scope.READ, Scope.ADMIN))
    closed = settings.model_copy(update={"auth": "on"})
    with serving(closed) as (url, _):
        page, _log = opened(browser, url)
        page.get_by_label("API key").fill("isk_wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("Invalid API key")
        page.get_by_label("API key").fill(reader)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        page.get_by_text("default", exact=True).click()
        expect(page.get_by_role("link", name="API keys")).to_have_count(0)
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("API key").fill(admin)
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("default", exact=True).click()
        page.get_by_role("link", name="API keys").click()
        page.get_by_label("Key name").fill("nightly")
        page.get_by_role("button", name="Create key").click()
        expect(page.get_by_text("It is not shown again")).to_be_visible()
        expect(page.get_by_role("cell", name="nightly", exact=True)).to_be_visible()
        page.close()


def test_every_view_fits_and_is_accessible_without_errors(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    first, second = (in_state(resources, State.SUCCEEDED).id for _ in range(2))
    waiting = queued(resources).id
    others = (State.FAILED, State.CANCELLED, State.PAUSED)
    rest = (in_state(resources, state).id for state in others)
    register(resources, "host:1:ab", CPU, gpu(24))
    patient = with_long_leases(resources)
    busy = claim_job(patient, queued(resources, priority=9).id, "host:1:ab")
    line = NewLogLine(time=busy.created_at, level=LogLevel.WARNING, event="slow disk")
    job_log.record_lines(resources, busy.lease, [line])
    jobs_of_all_states = (f"jobs/{job}" for job in (first, waiting, busy.id, *rest))
    pairs = (f"compare?jobs={first},{second}", f"compare?jobs={first},{waiting}")
    with serving(settings) as (url, _):
        for view in (*VIEWS, *jobs_of_all_states, *pairs):
            page, log = opened(browser, f"{url}/#/{view}")
            expect(page.locator("h1")).to_be_visible()
            for width in CHECKED:
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(100)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, view
                # Contrast depends on the colours, the rest on the layout: wide or narrow.
                for colours in CHECKED[width]:
                    page.emulate_media(color_scheme=colours)
                    assert violations(page) == [], (view, width, colours)
            # Chromium logs what the views of missing things ask for.
            assert [error for error in log.errors if "404" not in error] == [], view
            assert all(request.startswith(url) for request in log.requests), log.requests
            page.close()


def violations(page: Page) -> list[str]:
    """Return the accessibility violations of a page."""
    return [
        f"{violation['id']}: {violation['nodes'][0]['html'][:120]}"
        for violation in Axe().run(page).response["violations"]
    ]


def test_the_first_view_is_small(browser: Browser, settings: Settings) -> None:
    received: list[int] = []
    with serving(settings) as (url, _):
        page = browser.new_page()
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on(
            "Network.loadingFinished", lambda event: received.append(event["encodedDataLength"])
        )
        page.goto(url)
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        page.close()
    assert 0 < sum(received) < 150_000


def test_files_are_served_with_etags_and_a_content_policy(settings: Settings) -> None:
    with serving(settings) as (url, _):
        page = httpx.get(url)
        assert "script-src 'self'" in page.headers["content-security-policy"]
        script = httpx.get(f"{url}/dashboard/main.js")
        assert script.headers["content-type"].startswith("text/javascript")
        cached = {"If-None-Match": script.headers["etag"]}
        assert httpx.get(f"{url}/dashboard/main.js", headers=cached).status_code == 304
        for name in ("../main.py", "%2e%2e/main.py", "__init__.py", "nothing.js"):
            assert httpx.get(f"{url}/dashboard/{name}").status_code == 404, name
