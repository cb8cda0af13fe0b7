"""The report in Chromium: no requests, and readable in dark mode and on a narrow screen."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from intraslice_core.reports.page import report_page
from tests.browsing import IN_BROWSER, chromium, violations
from tests.intraslice_core.reports.test_page import whole_page

browser = chromium
CONTRAST = """() => {
  const parts = (text) => (text.match(/[0-9.]+/g) || [0, 0, 0, 0]).map(Number);
  const opaque = (colour) => colour.length < 4 || colour[3] > 0;
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (opaque(colour)) return colour;
    }
    return [255, 255, 255];
  };
  const faults = [];
  for (const node of document.querySelectorAll('main *, header *, footer *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || node.closest('svg') && node.tagName !== 'text') continue;
    const style = getComputedStyle(node);
    const ink = parts(node.tagName === 'text' ? style.fill : style.color);
    const [high, low] = [light(ink), light(ground(node))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) faults.push(`${node.tagName} "${node.textContent.slice(0, 30)}" ${ratio}`);
  }
  return faults;
}"""
UNNAMED = """() => [...document.querySelectorAll('svg')].filter((svg) => {
  const named = (svg.getAttribute('aria-labelledby') || '').split(' ').some(
    (id) => id && (document.getElementById(id) || {}).textContent);
  const title = svg.querySelector(':scope > title');
  const label = named || svg.getAttribute('aria-label') || title && title.textContent;
  return svg.getAttribute('role') !== 'img' || !label;
}).length"""
CUT_OFF = """() => [...document.querySelectorAll('.scroll, pre')]
  .filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.innerText.slice(0, 60))"""
"""Tables and code that are wider than their box."""
NARROW = 390

pytestmark = list(IN_BROWSER)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page") / "report.html"
    place.write_text(report_page(whole_page()), encoding="utf-8")
    return place


def opened(browser: Browser, file: Path, width: int, colours: str) -> tuple[Page, list[str]]:
    """Open the page; return it with its requests, console messages and errors."""
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if colours == "dark" else "light",
    )
    events: list[str] = []
    page.on("request", lambda request: events.append(request.url))
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.goto(file.as_uri())
    return page, events


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, NARROW])
def test_the_page_requests_nothing_fits_the_screen_and_is_readable(
    browser: Browser, file: Path, width: int, colours: str
) -> None:
    page, events = opened(browser, file, width, colours)
    assert events == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(UNNAMED) == 0
    if width > NARROW:
        assert page.evaluate(CUT_OFF) == []
    page.close()


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, NARROW])
def test_the_page_is_accessible(browser: Browser, file: Path, width: int, colours: str) -> None:
    page, _ = opened(browser, file, width, colours)
    assert violations(page) == []
    page.close()


def test_dark_mode_has_another_background(browser: Browser, file: Path) -> None:
    grounds = []
    for colours in ("light", "dark"):
        page, _ = opened(browser, file, 1280, colours)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert grounds[0] == "rgb(247, 248, 250)"
    assert grounds[1] != grounds[0]


def test_collapsed_settings_open_by_keyboard(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file, 1280, "light")
    summary = page.locator("#settings summary")
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("#settings table").is_visible()
    page.close()
