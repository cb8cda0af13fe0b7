"""The walk of a person who has never seen the project: `intraslice up`, a browser, a real model."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.app.embedded.processes import REPOSITORY
from tests.browsing import CHROMIUM, Heard, chromium
from tests.system.test_up import up

JOB_MS = 900_000
expect.set_options(timeout=60_000)
browser = chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.broker,
    pytest.mark.postgres,
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: set CHROMIUM or install one"),
]


def ask_for_little(page: Page) -> None:
    """As the form is it takes minutes: enough text to see that it works."""
    page.get_by_text("More: calibration").click()
    for text in ("chat", "self", "pycode"):
        page.get_by_role("checkbox", name=text, exact=True).first.uncheck()
    page.get_by_role("group", name="Measure").get_by_label("pycode").uncheck()
    page.get_by_label("Sequences").fill("16")
    page.get_by_label("Tokens in each").fill("128")
    page.get_by_role("checkbox", name=re.compile("^speed")).uncheck()


def collected(page: Page, directory: Path) -> Path:
    """What the button gives, unpacked: the checkpoint's directory."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the model").click()
    archive = directory / download.value.suggested_filename
    download.value.save_as(archive)
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        opened.extractall(directory)
    return directory / archive.stem


def test_a_person_compresses_a_real_model_and_downloads_it(
    browser: Browser, tmp_path: Path
) -> None:
    with up(tmp_path / "data") as service:
        page = browser.new_page(accept_downloads=True)
        heard = Heard(page)
        page.goto(service.url)
        page.get_by_role("link", name="New job").last.click()
        preview = page.get_by_label("What would come of it")
        expect(preview.get_by_text("134.5M → 102.7M")).to_be_visible()
        ask_for_little(page)
        page.get_by_role("button", name="Compress").click()
        expect(page.get_by_text(re.compile(r"layer \d+ of 30"))).to_be_visible(timeout=JOB_MS)
        expect(page.locator("h1 .state.succeeded")).to_be_visible(timeout=JOB_MS)
        expect(page.get_by_label("Outcome").get_by_text("102.7M")).to_be_visible()
        expect(page.locator("svg.shapes").first).to_have_attribute(
            "aria-label", re.compile("^30 of 30 layers are done")
        )
        checkpoint = collected(page, tmp_path)
        assert heard.complaints == []
        assert all(request.startswith(service.url) for request in heard.requests)
        page.close()
    for command in (["verify", str(checkpoint)], ["generate", str(checkpoint), "The sea is"]):
        done = subprocess.run(
            [sys.executable, "-m", "app.cli.main", *command],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
