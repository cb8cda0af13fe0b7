"""Content of a job's report page, with the other jobs of the same model."""

from __future__ import annotations

from dataclasses import replace

from app.adapters.database import artifacts, jobs
from app.domain.artifact import ArtifactRecord
from app.domain.errors import ReportNotFoundError
from app.domain.identifiers import is_job_id
from app.domain.job import Job, JobFilter
from app.domain.lifecycle import State
from app.domain.principal import Principal
from app.services.jobs import existing_job, get_report
from app.services.resources import Resources
from intraslice_core.reports.page_contents import JobFacts, ModelResult, PublishedFile, ReportPage
from intraslice_core.reports.schema import CompressionReport

_MOST_RESULTS = 200
"""Maximum number of the model's newest jobs on the page."""


def get_page(resources: Resources, principal: Principal, job_id: str) -> ReportPage:
    """Return the content of the page.

    Raises:
        JobNotFoundError: if there is none, or it is not the principal's to see.
        ReportNotFoundError: if the job has not succeeded.
    """
    report = get_report(resources, principal, job_id)
    with resources.database.transaction() as transaction:
        job = existing_job(transaction, principal, job_id)
        files = artifacts.of_job(transaction, job_id) if job.expired_at is None else []
        wanted = JobFilter(model=job.model.ref, states=frozenset({State.SUCCEEDED}))
        succeeded = jobs.newest(transaction, job.project_id, wanted, limit=_MOST_RESULTS)
    others = [other for other in succeeded if other.model == job.model and other.id != job.id]
    return ReportPage(
        report=CompressionReport.model_validate(report),
        job=_facts(job),
        files=tuple(_published(file) for file in files),
        results=tuple(
            result for each in (job, *others) if (result := _result(each, job)) is not None
        ),
        json_url=f"/v1/jobs/{job.id}",
        artifacts_url=f"/v1/jobs/{job.id}/artifacts",
    )


def get_shared_page(resources: Resources, job_id: str) -> ReportPage:
    """Return the content of the page for the bearer of a signed link: the link is the permission.

    It has nothing of other jobs, no labels and no links that need a key.

    Raises:
        ReportNotFoundError: if the job was deleted meanwhile.
    """
    with resources.database.transaction() as transaction:
        job = jobs.find(transaction, job_id) if is_job_id(job_id) else None
        report = None if job is None else jobs.find_report(transaction, job_id)
        if job is None or report is None:
            raise ReportNotFoundError("There is no such report; the job may have been deleted")
        files = artifacts.of_job(transaction, job_id) if job.expired_at is None else []
    return ReportPage(
        report=CompressionReport.model_validate(report),
        job=replace(_facts(job), labels={}),
        files=tuple(_published(file) for file in files),
    )


def _facts(job: Job) -> JobFacts:
    return JobFacts(
        id=job.id,
        model=job.model.ref,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expired_at=job.expired_at,
        attempt=job.attempt,
        worked_seconds=job.worked_seconds,
        labels=job.labels,
        evaluation=job.evaluation,
    )


def _published(file: ArtifactRecord) -> PublishedFile:
    return PublishedFile(name=file.name, bytes=file.bytes, sha256=file.sha256)


def _result(job: Job, this: Job) -> ModelResult | None:
    """Return a job's main numbers; None without a result."""
    result = job.result
    if result is None:
        return None
    speed = result.speedup
    scored = result.perplexity_before, result.perplexity_after
    return ModelResult(
        job_id=job.id,
        url=f"/v1/jobs/{job.id}/report",
        created_at=job.created_at,
        labels=job.labels,
        method=job.compression.method,
        allocation=job.compression.allocation,
        params_after=result.params_after,
        bytes_after=result.bytes_after,
        removed_fraction=result.achieved_ratio,
        text=_text(job),
        perplexity_ratio=scored[1] / scored[0] if scored[0] and scored[1] else None,
        kl=result.kl,
        top1_agreement=result.top1_agreement,
        prefill_ratio=speed.prefill if speed else None,
        decode_ratio=speed.decode if speed else None,
        is_this=job.id == this.id,
        is_comparable=_scored_alike(job, this),
    )


def _text(job: Job) -> str | None:
    """Return the text that the perplexity is measured on, the first one."""
    texts = job.evaluation.perplexity if job.evaluation else ()
    return texts[0] if texts else None


def _scored_alike(job: Job, this: Job) -> bool:
    """Return whether both scored the same tokens: same text, same dense perplexity."""
    if job.result is None or this.result is None or _text(job) != _text(this):
        return False
    return job.result.perplexity_before == this.result.perplexity_before
