"""All published files of a job as one ZIP, made while it is sent: for people with a browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zipstream import ZipStream

from app.domain.hand_off import registered_name
from app.domain.job import Job
from app.services import jobs
from app.services.resources import Resources

_NAME = "{model}-{ratio}-{target}"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """`size` in bytes is exactly what `chunks` will add up to."""

    name: str
    size: int
    chunks: Iterator[bytes]


def archive_name(job: Job) -> str:
    """What the directory in the archive, and but for its ending the archive, is called."""
    return registered_name(
        _NAME, model=job.model.ref, ratio=job.ratio, target=job.compression.target
    )


def open_archive(resources: Resources, job_id: str) -> Archive:
    """The files as they are, not compressed: weights are noise to a compressor.

    Raises:
        ArtifactNotFoundError: if the job has published nothing.
        ArtifactsExpiredError: if it had.
    """
    job, files = jobs.get_artifacts(resources, job_id)
    name = archive_name(job)
    archive = ZipStream(sized=True)
    for file in files:
        # A generator: the store is asked when it is this file's turn.
        archive.add(resources.store.chunks(file.key), f"{name}/{file.name}", size=file.bytes)
    return Archive(name=f"{name}.zip", size=len(archive), chunks=iter(archive))
