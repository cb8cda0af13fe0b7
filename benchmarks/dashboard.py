"""Cost of the dashboard's first view: bytes, requests, external requests, console errors.

    python benchmarks/dashboard.py [--url http://127.0.0.1:8000]

Opens the first view of a service in a fresh Chromium (`CHROMIUM=`, or from the PATH). Without
`--url` a service is started for it.
The last line is JSON: {"bytes": …, "requests": …, "external_requests": 0, "console_errors": 0,
"ready_seconds": …}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from app.embedded.whole_service import service_at

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def fresh_page() -> Iterator[Page]:
    """Yield a page of a fresh Chromium.

    Raises:
        SystemExit: if there is no Chromium.
    """
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        raise SystemExit(f"no Chromium: set CHROMIUM, or install one of {', '.join(CHROMIUMS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def first_view(page: Page, url: str) -> dict[str, Any]:
    """Open the view with an empty cache and record its requests and errors."""
    sizes: list[float] = []
    urls: list[str] = []
    errors: list[str] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.on("request", lambda request: urls.append(request.url))
    page.on(
        "console",
        lambda message: errors.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    started = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("main h1")
    ready = time.perf_counter() - started
    page.wait_for_timeout(1000)
    here = urlsplit(url).netloc
    return {
        "bytes": int(sum(sizes)),
        "requests": len(urls),
        "external_requests": sum(urlsplit(requested).netloc != here for requested in urls),
        "console_errors": len(errors),
        "ready_seconds": round(ready, 3),
    }


def main() -> None:
    """Measure the first view and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="URL of a running service; default: one is started.")
    arguments = parser.parse_args()
    with service_at(arguments.url) as url, fresh_page() as page:
        results = first_view(page, url)
    table = Table("first view", "")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    Console().print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
