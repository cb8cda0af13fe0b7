"""Take screenshots of every dashboard view, with a real model.

    python docs/make_dashboard_screenshots.py [--url http://127.0.0.1:8000] [--out screenshots]

Without `--url` the service is started on a temporary directory, as `intraslice up` does. A browser
then does what a new user would: press "New job" and "Start compression", watch, and press "Download
model". A sweep, a text and a key follow for the other views. The screenshots of the documentation
are copied to docs/images. `CHROMIUM` names the browser; otherwise it is searched on the PATH.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from make_screenshots import QUIET, find_chromium
from playwright.sync_api import Browser, Page, sync_playwright

from app.embedded.whole_service import service_at

WIDE, NARROW = (1280, 860), (390, 860)
JOB_SECONDS = 1800
SHOWN = ("dashboard-new.png", "dashboard-running.png", "dashboard-sweep.png")
ENDED = re.compile("Succeeded|Failed|Cancelled")
TEXT = "Support ticket: the printer is on fire, and what to do about it.\n" * 400
Take = Callable[[Page, str], None]


def compress(page: Page, url: str, take: Take, directory: Path) -> Path:
    """Compress with the form's defaults and download the model; return the ZIP file."""
    page.goto(url)
    page.get_by_text("No jobs yet").wait_for()
    take(page, "first")
    page.get_by_role("link", name="New job").last.click()
    page.get_by_text("→").first.wait_for()
    take(page, "new")
    page.get_by_role("button", name="Start compression").click()
    page.get_by_text(re.compile("layer 1[0-9] of ")).wait_for(timeout=1000 * JOB_SECONDS)
    take(page, "running")
    page.locator("h1 .state", has_text=ENDED).wait_for(timeout=1000 * JOB_SECONDS)
    if "Succeeded" not in page.locator("h1 .state").inner_text():
        raise SystemExit(page.locator("main").inner_text())
    page.get_by_role("heading", name="Quality").wait_for()
    page.get_by_role("heading", name="Use this model").wait_for()
    take(page, "job")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download model").click()
    archive = directory / download.value.suggested_filename
    download.value.save_as(archive)
    return archive


def sweep(page: Page, url: str, take: Take) -> None:
    """Run and compare a sweep of three jobs on little text."""
    page.goto(f"{url}/#/new?sweep")
    page.get_by_role("region", name="Jobs of the sweep").wait_for()
    page.get_by_role("checkbox", name="10 %").uncheck()
    page.get_by_text("Advanced settings").click()
    page.locator("summary", has_text="Evaluation").click()
    for text in ("Chat (generated)", "Free text (generated)"):
        page.get_by_role("checkbox", name=text, exact=True).uncheck()
    page.get_by_label("Samples").fill("16")
    page.get_by_role("checkbox", name="Benchmark speed").uncheck()
    page.locator("summary", has_text="Evaluation").click()
    page.get_by_text("Advanced settings").click()
    page.get_by_role("button", name="Start sweep (3 jobs)").wait_for()
    page.wait_for_timeout(1500)
    take(page, "new-sweep")
    page.get_by_role("button", name="Start sweep (3 jobs)").click()
    page.locator("h1 .state", has_text=ENDED).wait_for(timeout=1000 * JOB_SECONDS)
    page.get_by_text("Size and quality", exact=True).wait_for()
    take(page, "sweep")
    page.get_by_role("link", name="Compare jobs").click()
    page.get_by_text("Settings that differ").wait_for()
    take(page, "compare")


def manage(page: Page, url: str, take: Take, directory: Path) -> None:
    """Upload a text, create a key, and visit the other views."""
    page.goto(f"{url}/#/datasets")
    text = directory / "tickets.txt"
    text.write_text(TEXT)
    page.get_by_label("File", exact=True).set_input_files(text)
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_text("Upload complete.").wait_for()
    take(page, "datasets")
    page.goto(f"{url}/#/keys")
    page.get_by_label("Key name").fill("nightly")
    page.get_by_role("button", name="Create key").click()
    page.get_by_role("cell", name="nightly", exact=True).wait_for()
    page.reload()
    page.get_by_role("cell", name="nightly", exact=True).wait_for()
    take(page, "keys")
    for view in ("models", "workers", "webhooks", "audit", "sweeps", "jobs"):
        page.goto(f"{url}/#/{view}")
        page.locator("h1").wait_for()
        page.wait_for_timeout(1000)
        take(page, view)


def camera(out: Path) -> Take:
    """Return a function that takes a view in light, in dark and on a narrow screen."""

    def take(page: Page, name: str) -> None:
        page.wait_for_timeout(700)
        for kind, (width, height), colours in (
            ("-narrow", NARROW, "light"),
            ("-dark", WIDE, "dark"),
            ("", WIDE, "light"),
        ):
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme="dark" if colours == "dark" else "light")
            page.wait_for_timeout(400)
            page.screenshot(path=out / f"dashboard-{name}{kind}.png", full_page=bool(kind))
        print(out / f"dashboard-{name}.png", flush=True)

    return take


@contextmanager
def browser() -> Iterator[Browser]:
    """Open the machine's Chromium."""
    executable = find_chromium()
    if executable is None:
        raise SystemExit("Chromium not found: set CHROMIUM, or install it")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
        yield opened
        opened.close()


def main() -> None:
    """Visit every view and take its screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="URL of a fresh service (default: start one)")
    parser.add_argument("--out", type=Path, default=Path("screenshots"), help="output directory")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="intraslice-screenshots-") as temporary:
        directory = Path(temporary)
        with service_at(arguments.url) as url, browser() as chromium:
            page = chromium.new_page(viewport=dict(zip(("width", "height"), WIDE, strict=True)))
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: print("page:", error))
            archive = compress(page, url, camera(arguments.out), directory)
            with zipfile.ZipFile(archive) as opened:
                print(archive.name, *opened.namelist(), sep="\n  ")
            sweep(page, url, camera(arguments.out))
            manage(page, url, camera(arguments.out), directory)
    for name in SHOWN:
        shutil.copy(arguments.out / name, Path(__file__).parent / "images" / name)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
