"""Take screenshots of every dashboard view, light and dark, at three widths.

    python -m docs.make_dashboard_screenshots [--url http://127.0.0.1:8000] [--out screenshots]
    python -m docs.make_dashboard_screenshots --quick | --tiny [--out screenshots]
    python -m docs.make_dashboard_screenshots --invented [--report FILE] [--out screenshots]

The first compresses a real model: the service is started on a temporary directory, as `intraslice
up` does, or is the one at `--url`. A browser then does what a new user would: press "New job" and
"Start compression", watch, and press "Download model". A sweep, a text and a key follow for the
other views. With `--quick` the jobs take little text and a fast method, with `--tiny` they compress
a random model of a few kilobytes, whose figures mean nothing: minutes in both cases.

The last takes every view and every state of a job within minutes, with jobs that are invented by
the helpers of the tests; succeeded ones have the figures of `--report`.

Files are named after view, width and colours. Pictures of the documentation are copied to
docs/images if their jobs compressed a real model. `CHROMIUM` names the browser; otherwise it is
searched on the PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
SHOWN = ("new", "running", "sweep")
"""Views whose pictures stand in the documentation."""
ENDED = re.compile("Succeeded|Failed|Cancelled")
TEXT = "Support ticket: the printer is on fire, and what to do about it.\n" * 400
FAST_METHOD, DEFAULT_METHOD = "FLAP", "IntraSlice+"
LITTLE = {"Samples": "32", "Tokens per sample": "128"}
TINY_LAYERS = 24
Take = Callable[[Page, str], None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of the real jobs: `model` is a directory of the server, or None for the preset."""

    model: Path | None = None
    little_text: bool = False
    fast_method: bool = False

    def enter(self, page: Page) -> None:
        """Fill in the form of a job or a sweep; what is not named here keeps its default."""
        if self.model is not None:
            page.get_by_role("radiogroup", name="Model source").get_by_text("Server path").click()
            page.get_by_label("Model", exact=True).fill(str(self.model))
        if not self.little_text:
            return
        page.get_by_text("Advanced settings").click()
        for name in ("Chat (generated)", "Free text (generated)"):
            page.get_by_role("checkbox", name=name, exact=True).uncheck()
        for name, value in LITTLE.items():
            page.get_by_label(name).fill(value)
        if self.fast_method:
            self._choose_method(page)
        page.get_by_text("Advanced settings").click()

    def _choose_method(self, page: Page) -> None:
        compared = page.get_by_role("group", name="Methods to compare")
        if compared.count():
            compared.get_by_role("checkbox", name=DEFAULT_METHOD, exact=True).uncheck()
            compared.get_by_role("checkbox", name=FAST_METHOD, exact=True).check()
        else:
            page.get_by_label("Method", exact=True).select_option(label=FAST_METHOD)


def compress(page: Page, url: str, take: Take, work: Work, directory: Path) -> Path:
    """Compress and download the model; return the ZIP file."""
    page.goto(url)
    page.get_by_text("No jobs yet").wait_for()
    take(page, "first")
    page.get_by_role("link", name="New job").last.click()
    page.get_by_text("→").first.wait_for()
    take(page, "new")
    work.enter(page)
    page.get_by_role("button", name="Start compression").click()
    reached = "[0-9]+" if work.little_text else "1[0-9]"
    page.get_by_text(re.compile(f"layer {reached} of ")).wait_for(timeout=1000 * JOB_SECONDS)
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


def sweep(page: Page, url: str, take: Take, work: Work) -> None:
    """Run and compare a sweep of three jobs on little text."""
    page.goto(f"{url}/#/new?sweep")
    page.get_by_role("region", name="Jobs of the sweep").wait_for()
    page.get_by_role("checkbox", name="10 %").uncheck()
    replace(work, little_text=True).enter(page)
    page.locator("summary", has_text="Evaluation").click()
    page.get_by_role("checkbox", name="Benchmark speed").uncheck()
    page.locator("summary", has_text="Evaluation").click()
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
        # First, because the state of a job may change while the others are taken.
        if name in SHOWN:
            page.screenshot(path=out / f"dashboard-{name}.png")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": HEIGHT})
            for colours in ("light", "dark"):
                page.emulate_media(color_scheme="dark" if colours == "dark" else "light")
                page.wait_for_timeout(300)
                page.screenshot(path=out / f"{name}-{width}-{colours}.png", full_page=True)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": USUAL["width"], "height": HEIGHT})
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


def tiny_model(directory: Path) -> Path:
    """Write a random model that jobs of services started later may name."""
    from tests.intraslice_core.tiny_models import tiny_llama

    os.environ["INTRASLICE_MODEL_ROOTS"] = json.dumps([str(directory)])
    return tiny_llama(directory / "tiny-llama", num_hidden_layers=TINY_LAYERS)


def real(chromium: Browser, take: Take, directory: Path, url: str | None, work: Work) -> None:
    """Compress a model, run a sweep, and take every view."""
    with service_at(url) as service:
        page = opened(chromium)
        archive = compress(page, service, take, work, directory)
        with zipfile.ZipFile(archive) as files:
            print(archive.name, *files.namelist(), sep="\n  ")
        sweep(page, service, take, work)
        manage(page, service, take, directory)


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="URL of a fresh service (default: start one)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--quick", action="store_true", help="little text and a fast method")
    kinds.add_argument("--tiny", action="store_true", help="compress a tiny random model")
    kinds.add_argument("--invented", action="store_true", help="invent jobs; run none")
    parser.add_argument("--report", type=Path, help="report of the succeeded jobs of --invented")
    parser.add_argument("--out", type=Path, default=Path("screenshots"), help="output directory")
    options = parser.parse_args()
    if options.report and not options.report.is_file():
        parser.error(f"--report: {options.report} is not a file")
    if options.url and options.tiny:
        parser.error("--tiny: the service at --url may not read this machine's models")
    return options


def main() -> None:
    """Visit every view and take its screenshots."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    take = camera(options.out)
    with (
        tempfile.TemporaryDirectory(prefix="intraslice-screenshots-") as temporary,
        browser() as chromium,
    ):
        directory = Path(temporary)
        if options.invented:
            invented(chromium, take, directory, options.report)
        else:
            work = Work(
                model=tiny_model(directory / "models") if options.tiny else None,
                little_text=options.quick or options.tiny,
                fast_method=options.quick,
            )
            real(chromium, take, directory, options.url, work)
    if not (options.invented or options.tiny):
        for name in SHOWN:
            picture = f"dashboard-{name}.png"
            shutil.copy(options.out / picture, Path(__file__).parent / "images" / picture)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
