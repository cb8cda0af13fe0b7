"""Files of attempts in the store: those of a lost database, and what published ones name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.domain.artifact import MANIFEST, attempt_prefix, job_prefix
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.services import jobs, publication
from app.services.resources import Resources
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport
from tests.app.builders import running, succeeded, weights_on_disk
from tests.app.checkpoints import finished_checkpoint

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


def test_published_files_name_no_directory_of_the_server(
    resources: Resources, tmp_path: Path
) -> None:
    model = weights_on_disk(tmp_path / "models" / "Big-1B")
    corpus = tmp_path / "texts" / "mine.txt"
    corpus.parent.mkdir()
    corpus.write_text("some words")
    source = CalibrationConfig(source=str(corpus))
    compression = CompressionConfig(calibration=source)
    job = running(
        resources, model=ModelSource(source="path", ref=str(model)), compression=compression
    )
    directory = finished_checkpoint(tmp_path / "small")
    written = CompressionReport.model_validate_json((directory / REPORT_FILE).read_bytes())
    report = written.model_copy(
        update={
            "model": str(model),
            "config": compression,
            "warnings": (f"{corpus} is short",),
        }
    )
    (directory / REPORT_FILE).write_text(report.model_dump_json())
    dumped = report.model_dump(mode="json")
    files = publication.upload(resources, job, directory, dumped, lambda _message, _done: None)
    contents = {file.name: resources.store.read(file.key) for file in files}
    for name, content in contents.items():
        assert str(tmp_path).encode() not in content, name
    manifest = json.loads(contents[MANIFEST])
    assert manifest["model"] == {"source": "path", "ref": "Big-1B", "revision": None}
    assert manifest["compression"]["calibration"]["source"] == "mine.txt"
    published = json.loads(contents[REPORT_FILE])
    assert published["model"] == "Big-1B"
    assert published["config"]["calibration"]["source"] == "mine.txt"
    assert published["warnings"] == ["mine.txt is short"]
