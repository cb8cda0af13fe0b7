"""Time of the dashboard's preset job, from the button to the downloaded model.

    python benchmarks/preset.py [--url http://127.0.0.1:8000]

A Chromium (`CHROMIUM=`, or from the PATH) opens the dashboard of a fresh service, presses "New
job", "Start compression" and, once the job has succeeded, "Download model". The time counts from
the second button to the last byte of the download. Stages are those of the job's events. Without
`--url` a service is started for it.

The last line is JSON: {"seconds": …, "stages": {STAGE: seconds}, "target": …}.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from dashboard import fresh_page
from job_stages import stage_seconds
from playwright.sync_api import Page
from rich.console import Console
from rich.table import Table

from app.embedded.whole_service import service_at

TARGET_SECONDS = 300.0
"""Longest time on two cores without AMX (issue 22)."""
LONGEST_SECONDS = 3600
ENDED = re.compile("Succeeded|Failed|Cancelled")


def run_preset(page: Page, url: str, directory: Path) -> float:
    """Press the buttons of a new user, save the model and return the seconds.

    Raises:
        SystemExit: with the page's text, if the job does not succeed.
    """
    page.goto(url)
    page.get_by_role("link", name="New job").last.click()
    start = page.get_by_role("button", name="Start compression")
    start.wait_for()
    page.get_by_text("→").first.wait_for()  # the estimate of `validate`
    started = time.perf_counter()
    start.click()
    page.locator("h1 .state", has_text=ENDED).wait_for(timeout=1000 * LONGEST_SECONDS)
    if "Succeeded" not in page.locator("h1 .state").inner_text():
        raise SystemExit(page.locator("main").inner_text())
    with page.expect_download() as download:
        page.get_by_role("button", name="Download model").click()
    download.value.save_as(directory / download.value.suggested_filename)
    return time.perf_counter() - started


def newest_events(page: Page, url: str) -> list[dict[str, Any]]:
    """Return the events of the newest job, oldest first."""
    (job,) = page.request.get(f"{url}/v1/jobs?limit=1").json()["data"]
    events: list[dict[str, Any]] = page.request.get(
        f"{url}/v1/jobs/{job['id']}/events?limit=1000"
    ).json()["data"]
    return events


def main() -> None:
    """Run the preset and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="URL of a running service; default: one is started.")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="intraslice-preset-") as folder,
        service_at(arguments.url) as url,
        fresh_page() as page,
    ):
        seconds = run_preset(page, url, Path(folder))
        stages = stage_seconds(newest_events(page, url))
    table = Table("stage", "seconds")
    for stage, took in stages.items():
        table.add_row(stage, f"{took:.1f}")
    table.add_row("button to downloaded model", f"{seconds:.1f}", style="bold")
    Console().print(table)
    print(json.dumps({"seconds": round(seconds, 1), "stages": stages, "target": TARGET_SECONDS}))


if __name__ == "__main__":
    main()
