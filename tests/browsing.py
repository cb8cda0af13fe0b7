"""The machine's Chromium, marks of its tests, a recorder of a page's requests, checks and steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
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


# -- checks of a view ----------------------------------------------------------------------------

NARROW = 390
WIDTHS = (1440, 1280, NARROW)
"""Widths in pixels at which every view is checked."""
CONTRAST = ("color-contrast", "link-in-text-block")
"""Rules of axe that depend on colours; those that do not are checked in light only."""
CUT_OFF = """(selector) => [...document.querySelectorAll(selector)]
  .filter((box) => box.scrollWidth > box.clientWidth + 1)
  .map((box) => `${box.getAttribute('aria-label')}: ${box.scrollWidth} > ${box.clientWidth}`)"""
"""Boxes whose content is wider than they are."""
NEVER_CUT = "pre, .tabs, .log"


def check_layout(page: Page, view: str, *, wide_tables: bool = False) -> None:
    """Check that a view fits and is accessible at every width, in light and in dark.

    `wide_tables` says that tables may scroll sideways at every width, not only on a phone.
    """
    before = page.viewport_size
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (view, width)
        boxes = NEVER_CUT if wide_tables or width == NARROW else f"{NEVER_CUT}, .scroll"
        assert page.evaluate(CUT_OFF, boxes) == [], (view, width)
        page.emulate_media(color_scheme="dark")
        assert violations(page, CONTRAST) == [], (view, width, "dark")
        page.emulate_media(color_scheme="light")
        assert violations(page) == [], (view, width, "light")
    if before is not None:
        page.set_viewport_size(before)


def violations(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """Return the accessibility violations of a page, of some rules or of all."""
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    return [
        f"{violation['id']}: {violation['nodes'][0]['html'][:120]}"
        for violation in Axe().run(page, options=options).response["violations"]
    ]


# -- steps ---------------------------------------------------------------------------------------


def copied(page: Page, name: str) -> str:
    """Press the button that copies a text, and return what is on the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name=f"Copy {name}")
    # For two seconds it still says so of the last text.
    expect(button).not_to_have_text("Copied")
    button.click()
    expect(button).to_have_text("Copied")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def code_of_result(page: Page, runtime: str) -> str:
    """Return the code that a result's page offers for a runtime, from the clipboard."""
    card = page.get_by_role("region", name="Use this model", exact=True)
    card.get_by_role("tab", name=runtime, exact=True).click()
    return copied(page, f"Use this model, {runtime}")


# -- steps in the form of a new job --------------------------------------------------------------


def choose_source(page: Page, name: str) -> None:
    """Choose where the model comes from."""
    page.get_by_role("radiogroup", name="Model source").get_by_text(name).click()


def open_card(page: Page, name: str) -> None:
    """Open a card of the form that is closed at first."""
    page.locator("summary", has_text=name).click()


def fill_form(page: Page, model: Path) -> None:
    """Choose a model of the server, with dimensions that suit a tiny one."""
    choose_source(page, "Server path")
    page.get_by_label("Model", exact=True).fill(str(model))
    page.get_by_text("Advanced settings").click()
    page.get_by_label("Round dimensions to").fill("2")
