"""Files that an attempt of a lost database left in the store do not stop the next one."""

from __future__ import annotations

import pytest

from app.domain.artifact import MANIFEST, attempt_prefix, job_prefix
from app.domain.principal import OPERATOR
from app.services import jobs, publication
from app.services.resources import Resources
from tests.app.builders import running, succeeded

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


@pytest.fixture
def artifact_store(each_store: str) -> str:
    return each_store


def test_an_attempt_overwrites_the_files_of_a_lost_attempt_of_its_number(
    resources: Resources,
) -> None:
    job = running(resources)
    prefix = attempt_prefix(job, job.fencing_token)
    # A restored dump repeats the numbers of attempts that were made after it.
    for name in (MANIFEST, "files/config.json", "files/of-the-lost-attempt.bin"):
        resources.store.put_new(prefix + name, b"lost")
    done = succeeded(resources, job)
    publication.discard_other_attempts(resources, done)
    published = jobs.list_artifacts(resources, OPERATOR, job.id)
    assert MANIFEST in {file.name for file in published}
    assert set(resources.store.keys(job_prefix(done))) == {file.key for file in published}
    assert all(resources.store.sha256(file.key) == file.sha256 for file in published)
