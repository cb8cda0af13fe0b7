"""What the dashboard's first view takes: bytes, requests, requests elsewhere, complaints.

    python benchmarks/dashboard.py [--url http://127.0.0.1:8000]

Opens the first view of a service, without `--url` of one that is started for it, in a fresh
Chromium (`CHROMIUM=`, or from the PATH).
The last line is JSON: {"bytes": …, "requests": …, "external_requests": 0, "console_errors": 0,
"ready_seconds": …}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from app.embedded.whole_service import service_at

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


def first_view(page: Page, url: str) -> dict[str, Any]:
    """Open it with an empty cache, and listen."""
    sizes: list[float] = []
    asked: list[str] = []
    complaints: list[str] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda one: sizes.append(one["encodedDataLength"]))
    page.on("request", lambda one: asked.append(one.url))
    page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda one: complaints.append(str(one)))
    started = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("main h1")
    ready = time.perf_counter() - started
    page.wait_for_timeout(1000)
    here = urlsplit(url).netloc
    return {
        "bytes": int(sum(sizes)),
        "requests": len(asked),
        "external_requests": sum(urlsplit(one).netloc != here for one in asked),
        "console_errors": len(complaints),
        "ready_seconds": round(ready, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of a service that is running")
    arguments = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        raise SystemExit(f"no Chromium: set CHROMIUM, or install one of {', '.join(CHROMIUMS)}")
    with service_at(arguments.url) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = first_view(browser.new_page(), url)
        browser.close()
    table = Table("first view", "")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
