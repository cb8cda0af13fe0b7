"""Pictures of the dashboard for the documentation, from a service that is running.

    python docs/make_dashboard_screenshots.py [--url http://127.0.0.1:8000] [--out docs/images]

Writes a picture of every view, of the newest job and of the newest sweep, by the Chromium that
`CHROMIUM=` names or that is found on the PATH.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import httpx
from make_screenshots import QUIET, find_chromium
from playwright.sync_api import sync_playwright

WIDE, NARROW = (1280, 860), (390, 860)


def views(url: str) -> dict[str, str]:
    """Names of pictures and the views they are of."""
    found = {"jobs": "#/jobs", "new": "#/new", "keys": "#/keys", "webhooks": "#/webhooks"}
    jobs = httpx.get(f"{url}/v1/jobs", params={"limit": 10}).json()["data"]
    sweeps = httpx.get(f"{url}/v1/sweeps", params={"limit": 1}).json()["data"]
    if jobs:
        found["job"] = f"#/jobs/{jobs[0]['id']}"
    if len(jobs) > 1:
        found["compare"] = f"#/compare?jobs={jobs[0]['id']},{jobs[1]['id']}"
    if sweeps:
        found["sweep"] = f"#/sweeps/{sweeps[0]['id']}"
    return found


def main() -> None:
    """Open each view and take it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    arguments = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium: set CHROMIUM, or install one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        for name, view in views(arguments.url).items():
            for kind, (width, height), colours in (
                ("", WIDE, "light"),
                ("-dark", WIDE, "dark"),
                ("-narrow", NARROW, "light"),
            ):
                tab = browser.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme="dark" if colours == "dark" else "light",
                )
                tab.goto(f"{arguments.url}/{view}")
                tab.wait_for_selector("h1")
                tab.wait_for_timeout(1500)
                file = arguments.out / f"dashboard-{name}{kind}.png"
                tab.screenshot(path=file)
                tab.close()
                print(file)  # noqa: T201 (a command)
        browser.close()


if __name__ == "__main__":
    main()
