"""Finished layers reach the store beside the work, and a slow store does not hold it up."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.artifact import job_prefix
from app.domain.errors import StoreUnavailableError
from app.domain.job import Job
from app.services import claims
from app.services.resources import Resources
from tests.app.builders import running
from workers.layer_mirror import LayerMirror
from workers.runner import layers_directory, remove_stale_work

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def finish(mirror: LayerMirror, *names: str) -> None:
    mirror.directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (mirror.directory / name).write_bytes(name.encode())


def objects(resources: Resources, job: Job) -> set[str]:
    return {key.rpartition("/")[2] for key in resources.store.keys(job_prefix(job.id))}


def mirror_of(resources: Resources, job: Job) -> LayerMirror:
    return LayerMirror(resources, job, layers_directory(resources, job.id))


def test_files_are_kept_as_they_are_told_of(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    mirror.start()
    finish(mirror, "tokens.safetensors", "layer-00000.safetensors", "streams.safetensors")
    mirror.add("tokens.safetensors")
    mirror.add("layer-00000.safetensors")
    mirror.flush()
    assert objects(resources, job) == {"tokens.safetensors", "layer-00000.safetensors"}


def test_what_an_attempt_could_not_send_the_next_one_sends(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    finish(mirror, "tokens.safetensors", "streams.safetensors", "recovery.safetensors", ".part")
    mirror.start()
    mirror.flush()
    assert objects(resources, job) == {"tokens.safetensors"}


def test_a_store_that_is_away_is_asked_again_and_holds_nothing_up(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(resources)
    put, asked = resources.store.put_file, []

    def away_at_first(key: str, source: Path) -> None:
        asked.append(key)
        if len(asked) < 3:
            raise StoreUnavailableError
        put(key, source)

    monkeypatch.setattr(resources.store, "put_file", away_at_first)
    settings = resources.settings.model_copy(update={"maintenance_seconds": 0.01})
    mirror = mirror_of(replace(resources, settings=settings), job)
    mirror.start()
    finish(mirror, "tokens.safetensors")
    mirror.add("tokens.safetensors")
    deadline = time.monotonic() + 20
    while not objects(resources, job):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mirror.drop()
    assert len(asked) == 3


def test_nothing_is_sent_for_a_job_that_is_lost(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    mirror.start()
    claims.requeue_job(resources, job.lease, None)
    finish(mirror, "tokens.safetensors", "layer-00000.safetensors")
    mirror.add("tokens.safetensors")
    mirror.add("layer-00000.safetensors")
    mirror.flush()
    # The first is sent before the loss shows; a left-over that goes with the attempt's others.
    assert objects(resources, job) == {"tokens.safetensors"}


def test_the_directory_stays_until_the_job_has_ended(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    finish(mirror, "tokens.safetensors")
    remove_stale_work(resources)
    claims.requeue_job(resources, job.lease, None)
    remove_stale_work(resources)
    assert mirror.directory.is_dir()
    again = claims.claim_job(resources, job.id, "worker-2")
    assert again is not None
    claims.fail_job(resources, again.lease, claims.timeout_error(again))
    remove_stale_work(resources)
    assert not mirror.directory.exists()
