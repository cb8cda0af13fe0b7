"""The machine's Chromium, marks of its tests, a recorder of a page's requests, and steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
IN_BROWSER = (
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: set CHROMIUM or install one"),
)
"""Marks of tests in a browser."""

# Generous: other tests compete for the cores.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


class PageLog:
    """Requests, errors and warnings of a page."""

    def __init__(self, page: Page) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)


def opened(browser: Browser, url: str, width: int = 1280) -> tuple[Page, PageLog]:
    """Open a page of this width in pixels, with the log of its errors."""
    page = browser.new_page(viewport={"width": width, "height": 900}, accept_downloads=True)
    log = PageLog(page)
    page.goto(url)
    return page, log


# -- steps in the form of a new job --------------------------------------------------------------


def choose_source(page: Page, name: str) -> None:
    """Choose where the model comes from."""
    page.get_by_role("radiogroup", name="Model source").get_by_text(name).click()


def open_card(page: Page, name: str) -> None:
    """Open a card of the form that is closed at first."""
    page.locator("summary", has_text=name).click()
