"""Internal fields of records are left out, however a record is serialised."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, TypeAdapter

from app.domain.artifact import ArtifactRecord
from app.domain.job import Job, JobList, JobRecord
from app.domain.upload import Upload, UploadRecord
from app.domain.webhook import Webhook, WebhookRecord

RECORDS = [
    (
        JobRecord,
        Job,
        {
            *("project_id", "fencing_token", "lease_owner", "traceparent", "store_prefix"),
            *("gpu_bytes", "host_bytes"),
        },
    ),
    (UploadRecord, Upload, {"project_id", "files", "part_bytes", "store_prefix", "text_columns"}),
    (WebhookRecord, Webhook, {"project_id", "secret", "previous_salt"}),
]


@pytest.mark.parametrize(("record", "public", "internal"), RECORDS)
def test_a_record_serialises_as_the_public_model(
    record: type[BaseModel], public: type[BaseModel], internal: set[str]
) -> None:
    assert record.model_fields.keys() - public.model_fields.keys() == internal
    values = record.model_construct(**dict.fromkeys(record.model_fields))
    written = json.loads(values.model_dump_json(warnings=False))
    assert written.keys() == public.model_fields.keys()
    as_public = TypeAdapter(public).dump_python(values, warnings=False)
    assert as_public.keys() == public.model_fields.keys()


def test_a_list_of_records_serialises_as_public_models() -> None:
    record = JobRecord.model_construct(**dict.fromkeys(JobRecord.model_fields) | {"id": "job_1"})
    page = JobList.of([record, record], 1)
    (entry,) = page.model_dump(warnings=False)["data"]
    assert entry.keys() == Job.model_fields.keys()
    assert page.has_more
    assert page.next_cursor is not None


def test_the_key_of_an_artifact_is_not_serialised() -> None:
    file = ArtifactRecord(name="a", bytes=1, sha256="0", media_type="text/plain", key="jobs/1/a")
    assert file.model_dump().keys() == {"name", "bytes", "sha256", "media_type"}
