"""Take screenshots of the HTML report for the documentation.

    python docs/make_screenshots.py REPORT [--out docs/images]

REPORT is a compressed model's directory or its intraslice_report.json. Writes `report-desktop.png`,
`report-narrow.png` and `report-dark.png`, taken by the Chromium that `CHROMIUM` names or that is
on the PATH.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from intraslice_core.reports.page import report_page
from intraslice_core.reports.page_contents import ReportPage
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",  # Chromium refuses to run as root with its sandbox
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PICTURES = {
    "report-desktop": (1280, 1600, "light"),
    "report-narrow": (390, 1600, "light"),
    "report-dark": (1280, 1600, "dark"),
}
"""Window width, window height and colour scheme of each picture."""


def find_chromium() -> str | None:
    """Return the Chromium that `CHROMIUM` names, or the first on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)


def take(browser: Browser, page: Path, out: Path) -> None:
    """Take all pictures of a page."""
    for name, (width, height, colours) in PICTURES.items():
        tab = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if colours == "dark" else "light",
        )
        tab.goto(page.as_uri())
        tab.screenshot(path=out / f"{name}.png")
        tab.close()
        print(out / f"{name}.png")


def main() -> None:
    """Render the report and write its pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    arguments = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit(
            f"Chromium not found: set CHROMIUM, or install one of {', '.join(CHROMIUMS)}"
        )
    source = arguments.report
    file = source / REPORT_FILE if source.is_dir() else source
    report = CompressionReport.model_validate_json(file.read_bytes())
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "report.html"
        page.write_text(report_page(ReportPage(report=report)), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        take(browser, page, arguments.out)
        browser.close()


if __name__ == "__main__":
    main()
