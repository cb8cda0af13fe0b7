"""Take screenshots of every dashboard view, light and dark, at three widths.

    python -m docs.make_dashboard_screenshots [--url http://127.0.0.1:8000] [--out screenshots]
    python -m docs.make_dashboard_screenshots --invented [--report FILE] [--out screenshots]

The first compresses a real model: the service is started on a temporary directory, as `intraslice
up` does, or is the one at `--url`. A browser then does what a new user would: press "New job" and
"Start compression", watch, and press "Download model". A sweep, a text and a key follow for the
other views.

The second takes every view and every state of a job within minutes, with jobs that are invented by
the helpers of the tests; succeeded ones have the figures of `--report`.

Files are named after view, width and colours; pictures of the documentation are copied to
docs/images. `CHROMIUM` names the browser; otherwise it is searched on the PATH.
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

from playwright.sync_api import Browser, Page, sync_playwright

from app.domain.lifecycle import State
from app.embedded.whole_service import service_at
from docs.invented_jobs import Rows, invent, servers
from docs.make_screenshots import QUIET, find_chromium
from tests.app.api.serving import serving

WIDTHS = (1440, 1280, 390)
HEIGHT = 860
USUAL = {"width": 1280, "height": HEIGHT}
JOB_SECONDS = 1800
SHOWN = ("new",)
"""Views whose pictures stand in the documentation; they have no invented figures."""
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
    visit(
        page,
        url,
        take,
        {view: view for view in ("models", "workers", "webhooks", "audit", "sweeps")},
    )
    visit(page, url, take, {"jobs": "jobs"})


def visit(page: Page, url: str, take: Take, views: dict[str, str]) -> None:
    """Take views by their addresses after the `#`, given by the names of their pictures."""
    for name, view in views.items():
        page.goto(f"{url}/#/{view}")
        page.locator("h1").wait_for()
        page.wait_for_timeout(1000)
        take(page, name)


def views_of(rows: Rows) -> dict[str, str]:
    """Return the addresses of all views of invented jobs, by the names of their pictures."""
    first, second = rows.results
    plain = ("jobs", "new", "sweeps", "models", "datasets", "keys", "webhooks", "audit")
    return {
        **{view: view for view in plain},
        "new-sweep": "new?sweep",
        "sweep": f"sweeps/{rows.sweep}",
        "compare": f"compare?jobs={first},{second}",
        "unknown": "nowhere",
        "unknown-job": "jobs/job_missing",
        **{f"job-{state.value}": f"jobs/{job_id}" for state, job_id in rows.states.items()},
        f"job-{State.SUCCEEDED.value}": f"jobs/{second}",
    }


def invented(chromium: Browser, take: Take, directory: Path, report: Path | None) -> None:
    """Take every view and state with invented jobs, the login and an outage."""
    with servers(directory) as (settings, resources):
        page = opened(chromium)
        with serving(settings) as (url, _):
            visit(page, url, take, {"first": "jobs"})
            rows = invent(resources, report)
            visit(page, url, take, views_of(rows))
            for tab in ("Layers", "Files", "Settings", "Log"):
                page.get_by_role("tab", name=tab).click()
                take(page, f"job-succeeded-{tab.lower()}")
            page.keyboard.press("?")
            take(page, "shortcuts")
            page.goto(f"{url}/docs")
            page.wait_for_timeout(3000)
            take(page, "api-reference")
            page.goto(f"{url}/v1/jobs/{rows.results[1]}/report")
            take(page, "report")
            page.goto(url)
            page.locator("h1").wait_for()
        page.get_by_text("The service is not responding").wait_for()
        take(page, "outage")
        with serving(settings.model_copy(update={"auth": "on"})) as (url, _):
            page.goto(url)
            page.get_by_label("API key").wait_for()
            take(page, "login")


def camera(out: Path) -> Take:
    """Return a function that takes a view at every width, in light and in dark."""

    def take(page: Page, name: str) -> None:
        page.wait_for_timeout(700)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": HEIGHT})
            for colours in ("light", "dark"):
                page.emulate_media(color_scheme="dark" if colours == "dark" else "light")
                page.wait_for_timeout(300)
                page.screenshot(path=out / f"{name}-{width}-{colours}.png", full_page=True)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": USUAL["width"], "height": HEIGHT})
        if name in SHOWN:
            page.wait_for_timeout(300)
            page.screenshot(path=out / f"dashboard-{name}.png")
        print(out / name, flush=True)

    return take


def opened(chromium: Browser) -> Page:
    """Open a tab that prints the errors of its pages."""
    page = chromium.new_page(viewport={"width": USUAL["width"], "height": USUAL["height"]})
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: print("page:", error))
    return page


@contextmanager
def browser() -> Iterator[Browser]:
    """Open the machine's Chromium."""
    executable = find_chromium()
    if executable is None:
        raise SystemExit("Chromium not found: set CHROMIUM, or install it")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
        yield started
        started.close()


def real(chromium: Browser, take: Take, directory: Path, url: str | None) -> None:
    """Compress a model, run a sweep, and take every view."""
    with service_at(url) as service:
        page = opened(chromium)
        archive = compress(page, service, take, directory)
        with zipfile.ZipFile(archive) as files:
            print(archive.name, *files.namelist(), sep="\n  ")
        sweep(page, service, take)
        manage(page, service, take, directory)


def main() -> None:
    """Visit every view and take its screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="URL of a fresh service (default: start one)")
    parser.add_argument("--invented", action="store_true", help="invent jobs; run none")
    parser.add_argument("--report", type=Path, help="report of the succeeded jobs of --invented")
    parser.add_argument("--out", type=Path, default=Path("screenshots"), help="output directory")
    arguments = parser.parse_args()
    if arguments.report and not arguments.report.is_file():
        parser.error(f"--report: {arguments.report} is not a file")
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    take = camera(arguments.out)
    with (
        tempfile.TemporaryDirectory(prefix="intraslice-screenshots-") as temporary,
        browser() as chromium,
    ):
        if arguments.invented:
            invented(chromium, take, Path(temporary), arguments.report)
        else:
            real(chromium, take, Path(temporary), arguments.url)
    for name in SHOWN:
        picture = f"dashboard-{name}.png"
        shutil.copy(arguments.out / picture, Path(__file__).parent / "images" / picture)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
