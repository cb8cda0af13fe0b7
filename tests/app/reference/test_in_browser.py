"""The API reference in Chromium: complete, without other servers, with requests that work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from app.main import create_app
from app.settings import Settings
from tests.app.api.serving import serving
from tests.browsing import IN_BROWSER, chromium, opened

browser = chromium
KEY = "a-key-for-tests"
pytestmark = [*IN_BROWSER, pytest.mark.postgres, pytest.mark.broker]


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    values = settings.model_dump() | {"auth": "on", "api_key": KEY}
    with serving(Settings(**values)) as (address, _):
        yield address


def operations() -> int:
    document = create_app(Settings()).openapi()
    return sum(len(methods) for methods in document["paths"].values())


def executed(page: Page, operation: str) -> str:
    """Send the example request of an operation and return the answer's status."""
    block = page.locator(f"#operations-{operation}")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Execute").click()
    status = block.locator(".live-responses-table tbody .response-col_status").first
    expect(status).to_be_visible()
    return status.inner_text().strip()


def test_every_operation_is_shown_and_can_be_tried_with_the_sessions_key(
    browser: Browser, url: str
) -> None:
    page, log = opened(browser, f"{url}/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    assert page.locator(".opblock").count() == operations()
    expect(page.get_by_role("status")).to_contain_text("Enter an API key")
    assert log.errors == []

    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("status")).to_contain_text("with the API key of this session")
    assert executed(page, "service-show_service") == "200"
    assert executed(page, "jobs-validate") == "200"
    assert log.errors == []
    assert {request.split("?")[0] for request in log.requests if not request.startswith(url)} == {
        request for request in log.requests if request.startswith("data:")
    }

    page.goto(f"{url}/docs")
    expect(page.get_by_role("status")).to_contain_text("with the API key of this session")
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_role("status")).to_contain_text("Enter an API key")
    page.close()


def test_a_wrong_key_is_named(browser: Browser, url: str) -> None:
    page, _ = opened(browser, f"{url}/docs")
    page.get_by_label("API key").fill("isk_wrong")
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("status")).to_have_text("Invalid API key")
    page.close()
