"""Objects without an owner go after a day and two passes, and owned ones never."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from app.adapters.storage import ArtifactStore
from app.domain.artifact import attempt_prefix, job_prefix
from app.domain.deployment import MARKER
from app.domain.errors import StoreUnavailableError
from app.domain.lifecycle import State
from app.services import deployment, orphans
from app.services.resources import Resources
from tests.app.builders import in_state, queued, running

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
_DAY = 86_400


@pytest.fixture(autouse=True)
def claimed(resources: Resources) -> None:
    deployment.claim_store(resources)


def put(resources: Resources, key: str) -> str:
    """Store an object below the deployment's prefix and return its whole key."""
    whole = f"{resources.deployment.id()}/{key}"
    resources.store.put_new(whole, b"left behind")
    return whole


def let_pass(resources: Resources, hours: float) -> None:
    """Let time pass for the listed orphans and for all objects."""
    with resources.database.transaction() as transaction:
        transaction.execute(
            text("UPDATE orphans SET listed_at = listed_at - make_interval(secs => :seconds)"),
            {"seconds": hours * 3600},
        )
    age_objects(resources, hours)


def age_objects(resources: Resources, hours: float) -> None:
    directory = resources.settings.data_dir / "artifacts"
    for file in directory.rglob("*"):
        if file.is_file():
            moment = file.stat().st_mtime - hours * 3600
            os.utime(file, (moment, moment))


def stored(resources: Resources) -> set[str]:
    return set(resources.store.keys("")) - {MARKER}


def test_orphans_are_removed_a_day_after_they_were_listed_and_owned_objects_kept(
    resources: Resources,
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    busy, waiting = running(resources), queued(resources)
    owned = {*resources.store.keys(job_prefix(job))}
    owned.add(put(resources, attempt_prefix(busy, 1).partition("/")[2] + "files/a"))
    owned.add(put(resources, f"jobs/{waiting.id}/layers/1"))
    owned.add(put(resources, "statistics/abc"))
    lost = {
        put(resources, "jobs/job_01J00000000000000000000000/attempts/3/files/deep/x"),
        put(resources, "jobs/nonsense/y"),
        put(resources, "uploads/upl_gone/0/000000"),
    }
    age_objects(resources, 1000)
    for hours in (0, 12, 11.9):
        let_pass(resources, hours)
        assert orphans.remove_orphans_now(resources) == 0
        assert stored(resources) == owned | lost
    let_pass(resources, 0.2)
    assert orphans.remove_orphans_now(resources) == 3
    assert stored(resources) == owned


def test_an_orphan_that_changes_starts_anew(resources: Resources) -> None:
    queued(resources)
    put(resources, "jobs/lost/x")
    orphans.remove_orphans_now(resources)
    let_pass(resources, 25)
    put(resources, "jobs/lost/y")
    assert orphans.remove_orphans_now(resources) == 0
    let_pass(resources, 25)
    assert orphans.remove_orphans_now(resources) == 2


def test_an_orphan_that_has_an_owner_again_is_listed_anew_when_it_loses_it(
    resources: Resources,
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    with resources.database.transaction() as transaction:
        transaction.execute(text("CREATE TABLE restored AS SELECT * FROM jobs"))
    queued(resources)
    try:
        delete_row(resources, job.id)
        age_objects(resources, 1000)
        orphans.remove_orphans_now(resources)
        let_pass(resources, 23)
        with resources.database.transaction() as transaction:
            transaction.execute(text("INSERT INTO jobs SELECT * FROM restored"))
        orphans.remove_orphans_now(resources)
        delete_row(resources, job.id)
        let_pass(resources, 23)
        assert orphans.remove_orphans_now(resources) == 0
        assert resources.store.keys(job_prefix(job)) != []
    finally:
        with resources.database.transaction() as transaction:
            transaction.execute(text("DROP TABLE restored"))


def delete_row(resources: Resources, job_id: str) -> None:
    with resources.database.transaction() as transaction:
        transaction.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job_id})


def test_nothing_is_removed_while_the_table_of_jobs_is_empty(resources: Resources) -> None:
    lost = put(resources, "jobs/lost/x")
    for _ in range(3):
        assert orphans.remove_orphans_now(resources) == 0
        let_pass(resources, 48)
    assert stored(resources) == {lost}
    queued(resources)
    assert orphans.remove_orphans_now(resources) == 0, "the first pass only lists"
    let_pass(resources, 48)
    assert orphans.remove_orphans_now(resources) == 1


def test_a_clock_that_is_set_back_only_delays_a_removal(resources: Resources) -> None:
    queued(resources)
    lost = put(resources, "jobs/lost/x")
    orphans.remove_orphans_now(resources)
    # Listed, and written, in what is the future by the clock that was set back.
    let_pass(resources, -72)
    assert orphans.remove_orphans_now(resources) == 0
    let_pass(resources, 72 + 23)
    assert orphans.remove_orphans_now(resources) == 0
    assert stored(resources) == {lost}
    let_pass(resources, 2)
    assert orphans.remove_orphans_now(resources) == 1


class FailingStore(ArtifactStore):
    """A store that fails at a chosen call, after some calls."""

    def __init__(self, url: str, fails: str, after: int = 0) -> None:
        super().__init__(url)
        self.fails = fails
        self.left = after

    def _count(self, call: str) -> None:
        if self.fails == call:
            self.left -= 1
            if self.left < 0:
                raise StoreUnavailableError

    def directories(self, prefix: str) -> list[str]:
        self._count("directories")
        return super().directories(prefix)

    def objects(self, prefix: str):  # type: ignore[no-untyped-def]
        self._count("objects")
        return super().objects(prefix)

    def delete(self, keys: list[str]) -> None:
        if self.fails == "delete":
            super().delete(keys[:1])
            raise StoreUnavailableError
        super().delete(keys)


def listed(resources: Resources) -> set[str]:
    with resources.database.transaction() as transaction:
        return set(transaction.scalars(text("SELECT prefix FROM orphans")))


@pytest.mark.parametrize("after", [0, 1])
def test_a_listing_that_fails_half_way_lists_and_removes_nothing(
    resources: Resources, after: int
) -> None:
    queued(resources)
    lost = {put(resources, "jobs/lost/x"), put(resources, "uploads/upl_lost/0/000000")}
    url = resources.settings.store_url
    broken = replace(resources, store=FailingStore(url, "directories", after))
    with pytest.raises(StoreUnavailableError):
        orphans.remove_orphans_now(broken)
    assert listed(resources) == set()
    orphans.remove_orphans_now(resources)
    let_pass(resources, 48)
    prefixes = listed(resources)
    with pytest.raises(StoreUnavailableError):
        orphans.remove_orphans_now(replace(broken, store=FailingStore(url, "directories", after)))
    assert (stored(resources), listed(resources)) == (lost, prefixes)
    assert orphans.remove_orphans_now(resources) == 2


@pytest.mark.parametrize("fails", ["objects", "delete"])
def test_an_interrupted_removal_is_completed_by_the_next(resources: Resources, fails: str) -> None:
    job = in_state(resources, State.SUCCEEDED)
    owned = set(resources.store.keys(job_prefix(job)))
    for name in ("a/x", "a/y", "b/x"):
        put(resources, f"jobs/{name}")
    orphans.remove_orphans_now(resources)
    let_pass(resources, 48)
    broken = replace(resources, store=FailingStore(resources.settings.store_url, fails, 1))
    with pytest.raises(StoreUnavailableError):
        orphans.remove_orphans_now(broken)
    orphans.remove_orphans_now(resources)
    assert stored(resources) == owned
    assert listed(resources) == set()


def test_one_process_in_each_period_searches_for_orphans(resources: Resources) -> None:
    queued(resources)
    put(resources, "jobs/lost/x")
    orphans.remove_orphans(resources)
    let_pass(resources, 48)
    assert orphans.remove_orphans(resources) == 0
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE turns SET taken_at = now() - interval '2 hours'"))
    assert orphans.remove_orphans(resources) == 1


def test_the_age_cannot_be_set_below_a_day(resources: Resources) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 24"):
        type(resources.settings)(orphan_hours=1)


def test_times_of_objects_are_those_of_the_store(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    store.put_new("a/x", b"12")
    ((entry),) = store.objects("a/")
    assert (entry.key, entry.bytes) == ("a/x", 2)
    assert abs(entry.changed_at.timestamp() - time.time()) < _DAY
