"""A sweep in a real browser: start, watch, compare, and push a result to a Hub."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from pydantic import SecretStr

from app.settings import Settings
from tests.app.api.serving import serving
from tests.app.hub_server import Hub, hub_server
from tests.browsing import (
    IN_BROWSER,
    check_layout,
    chromium,
    fill_form,
    open_card,
    opened,
    violations,
)
from tests.workers.test_worker import tiny_model, worker

browser = chromium

pytestmark = [*IN_BROWSER, pytest.mark.postgres, pytest.mark.broker]
COMPARED = ("Magnitude", "FLAP", "TransAct", "Wanda-sp")
"""Titles of the sweep's methods, which take the least time of all."""


def fill_in_comparison(page: Page, model: Path) -> None:
    """Fill in a sweep of four methods at two ratios, with little text."""
    fill_form(page, model)
    for text in ("Chat (generated)", "Free text (generated)"):
        page.get_by_role("checkbox", name=text, exact=True).first.uncheck()
    page.get_by_label("Samples").fill("16")
    page.get_by_label("Tokens per sample").fill("32")
    open_card(page, "Evaluation")
    page.get_by_role("checkbox", name="Benchmark speed").uncheck()
    page.get_by_label("Sample prompts").fill("")
    for ratio in ("10 %", "40 %"):
        page.get_by_role("checkbox", name=ratio, exact=True).uncheck()
    methods = page.get_by_role("group", name="Methods to compare")
    methods.get_by_role("checkbox", name="IntraSlice+", exact=True).uncheck()
    entry = page.get_by_label("Estimate").get_by_role("status")
    expect(entry).to_contain_text("at least one method")
    for title in COMPARED:
        methods.get_by_role("checkbox", name=title, exact=True).check()


def rows_of(table: Locator, page: Page, title: str) -> Locator:
    """Return the rows of a method."""
    return table.get_by_role("row").filter(has=page.get_by_role("cell", name=title, exact=True))


def check_results(page: Page) -> None:
    """Look for the dense model and every method at both ratios, in the table and the chart."""
    table = page.get_by_role("region", name="Jobs of the sweep")
    expect(table.get_by_role("row")).to_have_count(1 + 1 + 8)
    for title in COMPARED:
        expect(rows_of(table, page, title).locator(".state.succeeded")).to_have_count(2)
    for text in ("Python docs", "Python code"):
        page.get_by_label("Text", exact=True).select_option(text)
        expect(page.get_by_text(f"Perplexity on {text}", exact=True).first).to_be_visible()
    legend = page.locator(".u-legend").first
    for name in ("Original", *COMPARED):
        expect(legend.get_by_text(name, exact=True)).to_be_visible()


def check_comparison(page: Page) -> None:
    """Look for the results of all jobs, and for settings that differ but none that do not."""
    expect(page.get_by_role("heading", name="Compare 8 jobs")).to_be_visible()
    results = page.get_by_role("region", name="Results")
    expect(results.get_by_role("columnheader")).to_have_count(8)
    expect(results.get_by_role("columnheader").first).to_contain_text(re.compile(r"^\d+ % · "))
    weights = results.get_by_role("row", name=re.compile("^Weights")).get_by_role("cell")
    expect(weights).to_have_text([re.compile(r"\d")] * 8)
    differing = page.get_by_role("region", name="Settings")
    for name in ("Removed share of layer weights", "Method"):
        expect(differing.get_by_role("rowheader", name=name, exact=True)).to_be_visible()
    expect(differing.get_by_role("rowheader", name="Samples", exact=True)).to_have_count(0)
    check_layout(page, "compare", wide_tables=True)


def push(page: Page, name: str) -> str:
    """Push the result by the page's button and watch it to its end; return the repository's URL."""
    page.get_by_role("tab", name="Overview").click()
    hub = page.get_by_role("group", name="Push to a Hub repository")
    hub.get_by_text("Push to a Hub repository").click()
    hub.get_by_label("Repository").fill(name)
    hub.get_by_role("button", name="Push").click()
    # Playwright cannot pass on a slash in a pattern.
    place = hub.get_by_role("link", name=re.compile(f"^acme.{name} at [0-9a-f]{{40}}$"))
    expect(place).to_be_visible()
    return place.get_attribute("href") or ""


def published(url: str, job_id: str) -> dict[str, bytes]:
    """Return the content of a job's published files by name."""
    with httpx.Client(base_url=url) as client:
        files = client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
        return {file["name"]: client.get(file["url"]).content for file in files}


def pushing_to(hub: Hub, settings: Settings) -> Settings:
    """Return the settings of a deployment that pushes results to this Hub on request."""
    changes = {
        "handoff_automatic": False,
        "handoff_hub_endpoint": hub.url,
        "handoff_hub_namespace": "acme",
        "handoff_hub_token": SecretStr(hub.token),
    }
    return settings.model_copy(update=changes)


# The variables let the worker reach the local Hub, which takes large files by LFS only.
HUB_VARIABLES = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.mark.slow
def test_a_sweep_of_four_methods_at_two_ratios_is_watched_compared_and_pushed(
    browser: Browser, settings: Settings, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path)
    with (
        hub_server() as hub,
        serving(pushing := pushing_to(hub, settings)) as (url, _),
        worker(pushing, tmp_path / "worker.log", **HUB_VARIABLES),
    ):
        page, log = opened(browser, f"{url}/#/new?sweep")
        fill_in_comparison(page, model)
        table = page.get_by_role("region", name="Jobs of the sweep")
        expect(table.get_by_role("row")).to_have_count(1 + 8)
        expect(page.get_by_label("Method", exact=True)).to_have_count(0)
        page.get_by_role("button", name="Start sweep (8 jobs)").click()
        expect(page).to_have_url(re.compile(r"#/sweeps/\w+$"))
        expect(page.locator("h1 .state.running")).to_be_visible(timeout=120_000)
        expect(page.locator("h1 .state.succeeded")).to_be_visible(timeout=400_000)
        check_results(page)
        check_layout(page, "sweep")
        page.get_by_role("link", name="Compare jobs").click()
        check_comparison(page)
        page.go_back()
        rows_of(table, page, "FLAP").first.get_by_role("link").click()
        assert push(page, "small") == f"{hub.url}/acme/small"
        check_layout(page, "pushed")
        for tab in ("Layers", "Files", "Settings", "Log"):
            page.get_by_role("tab", name=tab).click()
            assert violations(page) == [], tab
        assert hub.repositories["acme/small"].files == published(url, page.url.rpartition("/")[2])
        assert [error for error in log.errors if "422" not in error] == []
        assert all(request.startswith(url) for request in log.requests), log.requests
        page.close()
