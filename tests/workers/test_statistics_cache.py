"""Statistics caches of sweeps: shared by a sweep's jobs, removed after its end."""

from __future__ import annotations

import pytest

from app.domain.principal import OPERATOR
from app.domain.sweep import SweepRequest
from app.services import sweeps
from app.services.resources import Resources
from intraslice_core.config import CompressionSettings
from tests.app.builders import make_request, queued
from workers.runner import remove_stale_statistics, statistics_cache

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def test_jobs_of_one_sweep_share_a_cache_until_the_sweep_has_ended(resources: Resources) -> None:
    request = SweepRequest(
        model=make_request().model, compression=CompressionSettings(), ratios=(0.2, 0.4)
    )
    first, second = (sweeps.create_sweep(resources, OPERATOR, request).sweep for _ in range(2))
    assert statistics_cache(resources, queued(resources)) is None
    caches = [statistics_cache(resources, job) for sweep in (first, second) for job in sweep.jobs]
    directories = [cache.directory for cache in caches if cache is not None]
    assert directories[0] == directories[1] != directories[2] == directories[3]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    remove_stale_statistics(resources)
    assert all(directory.is_dir() for directory in directories)
    sweeps.cancel_sweep(resources, OPERATOR, first.id)
    remove_stale_statistics(resources)
    assert [directory.is_dir() for directory in directories] == [False, False, True, True]
