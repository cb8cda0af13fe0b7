"""Use the dashboard with a real model and take screenshots of every view.

    python docs/make_dashboard_screenshots.py [--url http://127.0.0.1:8000] [--out screenshots]

Without `--url` the whole service is started on a temporary directory, like `intraslice up`. The
browser then acts like a new user: press "New job" and "Compress", watch, and press "Download the
model". A sweep, a text and a key follow, for the other views. The screenshots of the documentation
are copied to docs/images. The Chromium is the one that `CHROMIUM=` names, or the first on the PATH.
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
ENDED = re.compile(r"succeeded|failed|cancelled")
TEXT = "Tickets of our own kind: the printer is on fire, and what to do about it.\n" * 400
Take = Callable[[Page, str], None]


def walk(page: Page, url: str, take: Take, directory: Path) -> Path:
    """Create a job with the form's defaults and download its model; return the ZIP."""
    page.goto(url)
    page.get_by_text("No jobs yet").wait_for()
    take(page, "first")
    page.get_by_role("link", name="New job").last.click()
    page.get_by_text("→").first.wait_for()
    take(page, "new")
    page.get_by_role("button", name="Compress").click()
    page.get_by_text(re.compile("layer 1[0-9] of ")).wait_for(timeout=1000 * JOB_SECONDS)
    take(page, "running")
    page.locator("h1 .state", has_text=ENDED).wait_for(timeout=1000 * JOB_SECONDS)
    if "succeeded" not in page.locator("h1 .state").inner_text():
        raise SystemExit(page.locator("main").inner_text())
    page.get_by_role("heading", name="Quality").wait_for()
    page.get_by_role("heading", name="Files").wait_for()
    take(page, "job")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the model").click()
    archive = directory / download.value.suggested_filename
    download.value.save_as(archive)
    return archive


def sweep(page: Page, url: str, take: Take) -> None:
    """Create a sweep of three jobs on little text and compare them."""
    page.goto(f"{url}/#/new?sweep")
    page.get_by_role("region", name="Jobs of the sweep").wait_for()
    page.get_by_role("checkbox", name="10 %").uncheck()
    page.get_by_text("More: calibration").click()
    for text in ("chat", "self"):
        page.get_by_role("checkbox", name=text, exact=True).uncheck()
    page.get_by_label("Sequences").fill("16")
    page.get_by_role("checkbox", name=re.compile("^speed")).uncheck()
    page.get_by_text("More: calibration").click()
    page.get_by_role("button", name="Compress 3 times").wait_for()
    page.wait_for_timeout(1500)
    take(page, "new-sweep")
    page.get_by_role("button", name="Compress 3 times").click()
    page.locator("h1 .state", has_text=ENDED).wait_for(timeout=1000 * JOB_SECONDS)
    page.get_by_text("Size and quality").wait_for()
    take(page, "sweep")
    page.get_by_role("link", name="Compare its jobs").click()
    page.get_by_text("Settings that differ").wait_for()
    take(page, "compare")


def further(page: Page, url: str, take: Take, directory: Path) -> None:
    """Upload a text, create a key, and show the lists."""
    page.goto(f"{url}/#/uploads")
    text = directory / "tickets.txt"
    text.write_text(TEXT)
    page.get_by_label("File", exact=True).set_input_files(text)
    page.get_by_role("button", name="Send").last.click()
    page.get_by_text("It is here.").wait_for()
    take(page, "uploads")
    page.goto(f"{url}/#/keys")
    page.get_by_label("Who or what will use it").fill("nightly")
    page.get_by_role("button", name="Make a key").click()
    page.get_by_role("cell", name="nightly").wait_for()
    page.reload()
    page.get_by_role("cell", name="nightly").wait_for()
    take(page, "keys")
    for view in ("webhooks", "sweeps", "jobs"):
        page.goto(f"{url}/#/{view}")
        page.locator("h1").wait_for()
        page.wait_for_timeout(1000)
        take(page, view)


def camera(out: Path) -> Take:
    """Return a function that takes screenshots of a view: narrow, dark, and the window as it is."""

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
    """Run this machine's Chromium."""
    executable = find_chromium()
    if executable is None:
        raise SystemExit("no Chromium: set CHROMIUM, or install one")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
        yield opened
        opened.close()


def main() -> None:
    """Use the dashboard and take all screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="URL of a new service; default: one is started.")
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="intraslice-walk-") as place:
        directory = Path(place)
        with service_at(arguments.url) as url, browser() as chromium:
            page = chromium.new_page(viewport=dict(zip(("width", "height"), WIDE, strict=True)))
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: print("page:", error))
            archive = walk(page, url, camera(arguments.out), directory)
            with zipfile.ZipFile(archive) as opened:
                print(archive.name, *opened.namelist(), sep="\n  ")
            sweep(page, url, camera(arguments.out))
            further(page, url, camera(arguments.out), directory)
    for name in SHOWN:
        shutil.copy(arguments.out / name, Path(__file__).parent / "images" / name)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
