"""Where jobs of a sweep share, and for how long."""

from __future__ import annotations

import pytest

from app.domain.principal import OPERATOR
from app.domain.sweep import SweepRequest
from app.services import sweeps
from app.services.resources import Resources
from intraslice_core.config import CompressionSettings
from tests.app.builders import make_request, queued
from workers.runner import remove_stale_shared, shared_place

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def test_only_jobs_of_one_sweep_share_and_until_the_last_has_ended(resources: Resources) -> None:
    request = SweepRequest(
        model=make_request().model, compression=CompressionSettings(), ratios=(0.2, 0.4)
    )
    first, second = (sweeps.create_sweep(resources, OPERATOR, request).details for _ in range(2))
    assert shared_place(resources, queued(resources)) is None
    places = [shared_place(resources, job) for one in (first, second) for job in one.jobs]
    directories = [place.directory for place in places if place is not None]
    assert directories[0] == directories[1] != directories[2] == directories[3]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    remove_stale_shared(resources)
    assert all(directory.is_dir() for directory in directories)
    sweeps.cancel_sweep(resources, OPERATOR, first.sweep.id)
    remove_stale_shared(resources)
    assert [directory.is_dir() for directory in directories] == [False, False, True, True]
