"""All published files of a job as one ZIP, written while it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zipstream import ZipStream

from app.domain.job import Job
from app.domain.registry_hand_off import registered_name
from app.services import jobs
from app.services.resources import Resources

_NAME = "{model}-{ratio}-{target}"


@dataclass(frozen=True, kw_only=True)
class ArchiveStream:
    """A ZIP file; `size` in bytes is exactly the sum of its `chunks`."""

    name: str
    size: int
    chunks: Iterator[bytes]


def archive_name(job: Job) -> str:
    """Return the name of the archive, without `.zip`, and of the directory in it."""
    return registered_name(
        _NAME, model=job.model.ref, ratio=job.ratio, target=job.compression.target
    )


def open_archive(resources: Resources, job_id: str) -> ArchiveStream:
    """Open a ZIP of the files, not deflated: weights are noise to a compressor.

    Raises:
        ArtifactNotFoundError: if the job has published nothing.
        ArtifactsExpiredError: if its files have expired.
    """
    job, files = jobs.get_artifacts(resources, job_id)
    name = archive_name(job)
    archive = ZipStream(sized=True)
    for file in files:
        # A generator: a file is read from the store only when its turn comes.
        archive.add(resources.store.chunks(file.key), f"{name}/{file.name}", size=file.bytes)
    return ArchiveStream(name=f"{name}.zip", size=len(archive), chunks=iter(archive))
