"""Registry hand-offs of succeeded jobs to a real MLflow server and a mock Hub."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from mlflow import MlflowClient
from sqlalchemy import text

from app.domain.job import Job
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.registry_hand_off import TRIES, HandOff, HandOffState
from app.domain.service import HandOffTarget
from app.services import jobs, publication, registry_hand_offs
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.errors import ConfigurationError
from tests.app.builders import running
from tests.app.checkpoints import contents, finished_checkpoint
from tests.app.hub_server import Hub, Repository, hub_server
from tests.app.mlflow_server import mlflow_server
from workers.periodic_tasks import perform_due_hand_off

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.broker,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub_server() as server:
        yield server


@pytest.fixture
def pushing(resources: Resources, hub: Hub) -> Resources:
    """Resources of a deployment that pushes to the Hub."""
    return with_settings(
        resources,
        handoff_hub_endpoint=hub.url,
        handoff_hub_namespace="acme",
        handoff_hub_token=hub.token,
    )


def with_settings(resources: Resources, **changes: object) -> Resources:
    settings = Settings(**{**resources.settings.model_dump(), **changes})
    return replace(resources, settings=settings)


def succeed(resources: Resources, place: Path) -> Job:
    """Publish a checkpoint as a worker does."""
    import json

    directory = finished_checkpoint(place)
    report = json.loads((directory / "intraslice_report.json").read_text())
    job = running(resources)
    files = publication.upload(resources, job, directory, report, lambda _message, _done: None)
    return publication.publish(resources, job.lease, files, report)


def listed(resources: Resources, job: Job) -> list[HandOff]:
    return list(registry_hand_offs.list_hand_offs(resources, OPERATOR, job.id).data)


def make_due(resources: Resources) -> None:
    with resources.database.transaction() as transaction:
        due = "UPDATE hand_offs SET next_try_at = now() WHERE next_try_at IS NOT NULL"
        transaction.execute(text(due))


def test_nothing_is_handed_off_by_default(resources: Resources, tmp_path: Path) -> None:
    job = succeed(resources, tmp_path / "small")
    assert listed(resources, job) == []
    assert perform_due_hand_off(resources) == 0


def test_the_hub_receives_the_published_files(pushing: Resources, hub: Hub, tmp_path: Path) -> None:
    job = succeed(pushing, tmp_path / "small")
    assert [hand_off.state for hand_off in listed(pushing, job)] == [HandOffState.PENDING]
    assert perform_due_hand_off(pushing) == 1
    (done,) = listed(pushing, job)
    assert (done.state, done.attempts, done.error) == (HandOffState.DONE, 1, None)
    assert done.url == f"{hub.url}/acme/Big-1B-0.3-research"
    repository = hub.repositories["acme/Big-1B-0.3-research"]
    assert repository.private
    sent = contents(tmp_path / "small") | {"manifest.json": repository.files["manifest.json"]}
    assert repository.files == sent
    assert job.id in repository.files["manifest.json"].decode()
    assert perform_due_hand_off(pushing) == 0
    assert list(pushing.work_dir.glob("*.hand-off-*")) == []


def test_an_unavailable_hub_is_retried_and_the_job_stays_succeeded(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    hub.takes_objects = False
    job = succeed(pushing, tmp_path / "small")
    assert perform_due_hand_off(pushing) == 1
    (waiting,) = listed(pushing, job)
    assert waiting.state is HandOffState.PENDING
    assert waiting.error is not None
    assert "rejected the checkpoint" in waiting.error
    assert hub.token not in waiting.error
    assert perform_due_hand_off(pushing) == 0, "the retry is not due yet"
    assert jobs.get_job(pushing, OPERATOR, job.id).state is State.SUCCEEDED

    hub.takes_objects = True
    make_due(pushing)
    assert perform_due_hand_off(pushing) == 1
    (done,) = listed(pushing, job)
    assert (done.state, done.attempts, done.error) == (HandOffState.DONE, 2, None)


def test_the_hand_off_fails_after_the_last_attempt(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    hub.takes_objects = False
    job = succeed(pushing, tmp_path / "small")
    with pushing.database.transaction() as transaction:
        transaction.execute(text(f"UPDATE hand_offs SET attempts = {TRIES - 1}"))
    perform_due_hand_off(pushing)
    (failed,) = listed(pushing, job)
    assert (failed.state, failed.attempts) == (HandOffState.FAILED, TRIES)
    assert failed.finished_at is not None
    make_due(pushing)
    assert perform_due_hand_off(pushing) == 0


def test_another_worker_takes_over_and_the_late_one_changes_nothing(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    job = succeed(pushing, tmp_path / "small")
    killed = registry_hand_offs.claim_due(pushing)
    assert killed is not None
    assert registry_hand_offs.claim_due(pushing) is None
    make_due(pushing)
    assert perform_due_hand_off(pushing) == 1
    hub.takes_objects = False
    registry_hand_offs.perform(pushing, killed)
    (done,) = listed(pushing, job)
    assert (done.state, done.attempts) == (HandOffState.DONE, 2)


def test_a_request_pushes_once_more_under_another_name(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    job = succeed(pushing, tmp_path / "small")
    late = registry_hand_offs.claim_due(pushing)
    assert late is not None
    make_due(pushing)
    perform_due_hand_off(pushing)
    request = (pushing, OPERATOR, job.id, HandOffTarget.HUB, "by-hand")
    requested = registry_hand_offs.request_hand_off(*request)
    assert (requested.state, requested.attempts) == (HandOffState.PENDING, 0)
    again = registry_hand_offs.claim_due(pushing)
    assert again is not None
    assert again.attempt == late.attempt
    # The lost attempt of the first request has the same number.
    registry_hand_offs.perform(pushing, late)
    registry_hand_offs.perform(pushing, again)
    (done,) = listed(pushing, job)
    assert (done.state, done.url) == (HandOffState.DONE, f"{hub.url}/acme/by-hand")
    assert set(hub.repositories) == {"acme/Big-1B-0.3-research", "acme/by-hand"}


@pytest.mark.parametrize("name", ["models", None])
def test_a_repository_with_files_of_others_fails_the_hand_off_at_once(
    pushing: Resources, hub: Hub, tmp_path: Path, name: str | None
) -> None:
    manual = with_settings(pushing, handoff_automatic=False)
    job = succeed(manual, tmp_path / "small")
    foreign = Repository(private=True, files={"model.safetensors": b"of the company"})
    repository = f"acme/{name or 'Big-1B-0.3-research'}"
    hub.repositories[repository] = foreign
    registry_hand_offs.request_hand_off(manual, OPERATOR, job.id, HandOffTarget.HUB, name)
    assert perform_due_hand_off(manual) == 1
    (failed,) = listed(manual, job)
    assert (failed.state, failed.attempts) == (HandOffState.FAILED, 1)
    assert "contains files that this service did not write" in (failed.error or "")
    assert foreign.files == {"model.safetensors": b"of the company"}
    assert foreign.commits == []
    # No project owns it: the next one is told the same reason.
    with manual.database.transaction() as transaction:
        owned = transaction.scalars(text("SELECT repository FROM hub_repositories")).all()
    assert repository.lower() not in owned


def test_an_automatic_hand_off_does_not_overwrite_the_result_of_another_project(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    theirs = succeed(pushing, tmp_path / "theirs")
    with pushing.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET project_id = 'other'"))
    assert perform_due_hand_off(pushing) == 1
    with pushing.database.transaction() as transaction:
        transaction.execute(text("DELETE FROM jobs WHERE id = :job"), {"job": theirs.id})
    repository = hub.repositories["acme/Big-1B-0.3-research"]
    files = dict(repository.files)

    ours = succeed(pushing, tmp_path / "ours")
    assert perform_due_hand_off(pushing) == 1
    (failed,) = listed(pushing, ours)
    assert (failed.state, failed.attempts) == (HandOffState.FAILED, 1)
    assert "acme/Big-1B-0.3-research belongs to another project" in (failed.error or "")
    assert (repository.files, len(repository.commits)) == (files, 1)


def test_projects_push_results_of_the_same_model_where_the_name_contains_the_project(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    by_project = with_settings(pushing, handoff_name="{project}-{model}-{ratio}")
    for project in ("team-a", "team-b"):
        job = succeed(by_project, tmp_path / project)
        with by_project.database.transaction() as transaction:
            moved = text("UPDATE jobs SET project_id = :project WHERE id = :job")
            transaction.execute(moved, {"project": project, "job": job.id})
        assert perform_due_hand_off(by_project) == 1
    assert set(hub.repositories) == {"acme/team-a-Big-1B-0.3", "acme/team-b-Big-1B-0.3"}


def test_a_newer_result_of_the_project_is_another_commit_under_the_default_name(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    for name in ("older", "newer"):
        job = succeed(pushing, tmp_path / name)
        assert perform_due_hand_off(pushing) == 1
        assert [each.state for each in listed(pushing, job)] == [HandOffState.DONE]
    assert len(hub.repositories["acme/Big-1B-0.3-research"].commits) == 2


def test_results_are_handed_off_only_on_request_if_the_deployment_says_so(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    manual = with_settings(pushing, handoff_automatic=False)
    job = succeed(manual, tmp_path / "small")
    assert listed(manual, job) == []
    registry_hand_offs.request_hand_off(manual, OPERATOR, job.id, HandOffTarget.HUB, None)
    assert perform_due_hand_off(manual) == 1
    assert set(hub.repositories) == {"acme/Big-1B-0.3-research"}


def test_a_worker_without_the_settings_leaves_the_hand_off_to_others(
    pushing: Resources, resources: Resources, hub: Hub, tmp_path: Path
) -> None:
    job = succeed(pushing, tmp_path / "small")
    assert perform_due_hand_off(resources) == 1
    (waiting,) = listed(pushing, job)
    assert waiting.state is HandOffState.PENDING
    assert "INTRASLICE_HANDOFF_HUB_NAMESPACE" in (waiting.error or "")
    make_due(pushing)
    assert perform_due_hand_off(pushing) == 1
    assert [each.state for each in listed(pushing, job)] == [HandOffState.DONE]


def test_a_long_hand_off_keeps_its_lease(
    pushing: Resources, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    monkeypatch.setattr(registry_hand_offs, "_LEASE", timedelta(seconds=0.4))
    succeed(pushing, tmp_path / "small")
    due = registry_hand_offs.claim_due(pushing)
    assert due is not None
    with registry_hand_offs._renewed(pushing, due):
        for _ in range(10):
            time.sleep(0.1)
            assert registry_hand_offs.claim_due(pushing) is None


def test_missing_artifacts_fail_the_hand_off_at_once(
    pushing: Resources, hub: Hub, tmp_path: Path
) -> None:
    job = succeed(pushing, tmp_path / "small")
    with pushing.database.transaction() as transaction:
        transaction.execute(text("DELETE FROM artifacts"))
    perform_due_hand_off(pushing)
    (failed,) = listed(pushing, job)
    assert (failed.state, failed.error) == (
        HandOffState.FAILED,
        "the job's artifacts have been removed",
    )
    assert hub.requests == []


def test_files_of_a_killed_worker_are_removed_after_the_hand_off(
    pushing: Resources, tmp_path: Path
) -> None:
    job = succeed(pushing, tmp_path / "small")
    left = pushing.work_dir / f"{job.id}.hand-off-hub"
    left.mkdir(parents=True)
    registry_hand_offs.remove_stale(pushing)
    assert left.exists()
    with pushing.database.transaction() as transaction:
        transaction.execute(text("DELETE FROM hand_offs"))
    registry_hand_offs.remove_stale(pushing)
    assert not left.exists()


@pytest.mark.slow
def test_the_mlflow_version_names_the_job(resources: Resources, tmp_path: Path) -> None:
    place = tmp_path / "mlflow"
    place.mkdir()
    with mlflow_server(place) as url:
        registering = with_settings(resources, handoff_mlflow_uri=url)
        job = succeed(registering, tmp_path / "small")
        assert perform_due_hand_off(registering) == 1
        (done,) = listed(registering, job)
        assert (done.state, done.error) == (HandOffState.DONE, None)
        version = MlflowClient(tracking_uri=url).get_model_version("Big-1B-0.3-research", "1")
    assert version.tags["intraslice.job_id"] == job.id
    assert done.reference == "Big-1B-0.3-research version 1"


def test_an_invalid_name_template_stops_the_worker_at_its_start() -> None:
    with pytest.raises(ConfigurationError, match="may name") as caught:
        registry_hand_offs.require_usable(Settings(handoff_name="{secret}"))
    assert caught.value.field == "INTRASLICE_HANDOFF_NAME"


@pytest.mark.parametrize(
    "settings",
    [
        {"handoff_hub_endpoint": "http://127.0.0.1:9"},
        {"handoff_hub_namespace": "acme"},
    ],
)
def test_incomplete_hub_settings_are_rejected(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs INTRASLICE_HANDOFF_HUB"):
        Settings(**settings)
