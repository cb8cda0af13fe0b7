"""Uploads of finished layers in the background, also to a slow store."""

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
from intraslice_core import resume_state
from intraslice_core.allocation import cached_sensitivity
from tests.app.builders import running
from workers.layer_mirror import (
    LOCAL_PREFIX,
    MEASURED_PREFIX,
    SENSITIVITY_PREFIX,
    TRAINING_PREFIX,
    LayerMirror,
)
from workers.runner import layers_directory, remove_stale_work

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def finish(mirror: LayerMirror, *names: str) -> None:
    mirror.directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (mirror.directory / name).write_bytes(name.encode())


def objects(resources: Resources, job: Job) -> set[str]:
    return {key.rpartition("/")[2] for key in resources.store.keys(job_prefix(job))}


def mirror_of(resources: Resources, job: Job) -> LayerMirror:
    return LayerMirror(resources, job, layers_directory(resources, job.id))


def test_reported_files_are_uploaded(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    mirror.start()
    finish(mirror, "tokens.safetensors", "layer-00000.safetensors", "hidden-states.safetensors")
    mirror.add("tokens.safetensors")
    mirror.add("layer-00000.safetensors")
    mirror.flush()
    assert objects(resources, job) == {"tokens.safetensors", "layer-00000.safetensors"}


def test_the_next_attempt_uploads_the_remaining_files(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    states = [f"training-0000000{step}-abcd.safetensors" for step in (1, 2)]
    local = ("hidden-states.safetensors", f"{LOCAL_PREFIX}work.safetensors", ".part")
    finish(mirror, "tokens.safetensors", *states, *local)
    mirror.start()
    mirror.flush()
    assert objects(resources, job) == {"tokens.safetensors", states[1]}


def test_the_newest_state_of_a_training_replaces_the_others_and_reaches_another_machine(
    resources: Resources, tmp_path: Path
) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    mirror.start()
    finish(mirror, "tokens.safetensors")
    mirror.add("tokens.safetensors")
    for step in (1, 2, 3, 4):
        name = f"{TRAINING_PREFIX}{step:08d}-abcd.safetensors"
        # The engine removes the state of step 3 before its turn comes.
        if step != 3:
            finish(mirror, name)
        mirror.add(name)
    mirror.flush()
    expected = {"tokens.safetensors", f"{TRAINING_PREFIX}00000004-abcd.safetensors"}
    assert objects(resources, job) == expected
    claims.requeue_job(resources, job.lease, None)
    again = claims.claim_next_job(resources, "worker-2")
    assert again is not None
    elsewhere = LayerMirror(resources, again, tmp_path / "elsewhere")
    elsewhere.start()
    elsewhere.drop()
    assert {file.name for file in elsewhere.directory.iterdir()} == expected


def test_an_older_local_state_does_not_replace_the_stored_one(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    mirror.start()
    newer, older = (f"{TRAINING_PREFIX}0000000{step}-abcd.safetensors" for step in (2, 1))
    finish(mirror, newer)
    mirror.add(newer)
    mirror.flush()
    claims.requeue_job(resources, job.lease, None)
    again = claims.claim_next_job(resources, "worker-2")
    assert again is not None
    later = mirror_of(resources, again)
    finish(later, older)
    later.start()
    later.flush()
    assert objects(resources, job) == {newer}


def test_the_whole_sensitivity_replaces_its_layers_of_which_some_are_gone(
    resources: Resources,
) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    mirror.start()
    layers = [f"{MEASURED_PREFIX}abcd-0000{layer}.safetensors" for layer in range(3)]
    finish(mirror, *layers[:2])  # the engine removes the third before its turn comes
    for name in layers:
        mirror.add(name)
    mirror.flush()
    assert objects(resources, job) == {*layers[:2]}
    whole = f"{SENSITIVITY_PREFIX}abcd.safetensors"
    again = mirror_of(resources, job)
    finish(again, whole, f"{LOCAL_PREFIX}gradients-00000.safetensors")
    again.start()
    again.flush()
    assert objects(resources, job) == {whole}


def test_layers_that_a_crash_left_beside_the_stored_sensitivity_are_not_uploaded_again(
    resources: Resources,
) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    mirror.start()
    whole = f"{SENSITIVITY_PREFIX}abcd.safetensors"
    finish(mirror, f"{MEASURED_PREFIX}abcd-00000.safetensors", whole)
    mirror.add(whole)
    mirror.flush()
    again = mirror_of(resources, job)
    finish(again, "tokens.safetensors")
    again.start()
    again.flush()
    assert objects(resources, job) == {whole, "tokens.safetensors"}


def test_the_names_of_files_are_the_engines() -> None:
    assert resume_state.LOCAL_PREFIX == LOCAL_PREFIX
    assert resume_state.TRAINING_PREFIX == TRAINING_PREFIX
    assert resume_state.MEASURED_PREFIX == MEASURED_PREFIX
    assert cached_sensitivity.SENSITIVITY_PREFIX == SENSITIVITY_PREFIX


def test_an_unavailable_store_is_retried_in_the_background(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(resources)
    put, attempts = resources.store.put_file, []

    def fail_twice(key: str, source: Path) -> None:
        attempts.append(key)
        if len(attempts) < 3:
            raise StoreUnavailableError
        put(key, source)

    monkeypatch.setattr(resources.store, "put_file", fail_twice)
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
    assert len(attempts) == 3


def test_uploads_stop_when_the_lease_is_lost(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    mirror.start()
    claims.requeue_job(resources, job.lease, None)
    finish(mirror, "tokens.safetensors", "layer-00000.safetensors")
    mirror.add("tokens.safetensors")
    mirror.add("layer-00000.safetensors")
    mirror.flush()
    # The first upload reveals the loss; its file is removed with the attempt's others.
    assert objects(resources, job) == {"tokens.safetensors"}


def test_the_directory_stays_until_the_job_has_ended(resources: Resources) -> None:
    job = running(resources)
    mirror = mirror_of(resources, job)
    finish(mirror, "tokens.safetensors")
    remove_stale_work(resources)
    claims.requeue_job(resources, job.lease, None)
    remove_stale_work(resources)
    assert mirror.directory.is_dir()
    again = claims.claim_next_job(resources, "worker-2")
    assert again is not None
    claims.fail_job(resources, again.lease, claims.timeout_error(again))
    remove_stale_work(resources)
    assert not mirror.directory.exists()
