"""Publication of a worker's files as artifacts: all become visible at once, or none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.adapters.database import artifacts, events, job_changes, layer_files, registry_hand_offs
from app.domain.artifact import (
    MANIFEST,
    SIGNATURE,
    ArtifactRecord,
    attempt_prefix,
    attempt_token,
    job_prefix,
    media_type,
)
from app.domain.errors import LeaseLostError, PublicationError
from app.domain.events import EventType
from app.domain.job import JobRecord, JobResult, Lease, Speedup
from app.services.registry_hand_offs import automatic_targets
from app.services.removal import delete_objects
from app.services.resources import Resources
from intraslice_core.checkpoints.manifest import MANIFEST_SCHEMA_VERSION, program_versions
from intraslice_core.reports.references import local_references, without_local_paths
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport

_PASSES = 3
"""Times that every byte is counted: when it is hashed, when it is sent and when it is read back."""
_HASHED_BYTES = 2**24


def upload(
    resources: Resources,
    job: JobRecord,
    directory: Path,
    report: dict[str, Any],
    on_progress: Callable[[str, float], None],
) -> list[ArtifactRecord]:
    """Upload the files, verify their hashes, write the manifest last; nothing is visible yet.

    Args:
        resources: the store.
        job: as claimed; its token scopes the keys.
        directory: the finished checkpoint.
        report: the engine's.
        on_progress: called with a message and the finished fraction, at every part of a file; may
            raise to stop.

    Raises:
        PublicationError: if the store holds other bytes than the directory.
        StoreUnavailableError: if the store does not answer.
    """
    _redact_report(directory)
    prefix = attempt_prefix(job, job.fencing_token)
    # The manifest of the job replaces the engine's.
    files_there = (path for path in directory.rglob("*") if path.is_file())
    sources = sorted(path for path in files_there if path != directory / MANIFEST)
    files = []
    total = _PASSES * sum(source.stat().st_size for source in sources)
    count = _ByteCount(total=total, on_progress=on_progress)
    for index, source in enumerate(sources, 1):
        count.next_file(f"uploading file {index}/{len(sources)}")
        name = source.relative_to(directory).as_posix()
        files.append(_upload(resources, source, name, prefix, count.add))
    content = _manifest(job, files, report)
    if resources.artifact_signer is not None:
        signature = resources.artifact_signer.sign(content).encode()
        files.append(_put(resources, prefix, SIGNATURE, signature))
    files.append(_put(resources, prefix, MANIFEST, content))
    return files


def _redact_report(directory: Path) -> None:
    """Name models and texts in the report's file by their ends: it leaves this machine."""
    file = directory / REPORT_FILE
    if not file.is_file():
        return
    report = CompressionReport.model_validate_json(file.read_bytes())
    content = without_local_paths(report.model_dump(mode="json"), local_references(report))
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def publish(
    resources: Resources, lease: Lease, files: list[ArtifactRecord], report: dict[str, Any]
) -> JobRecord:
    """Write artifacts, report and success in one transaction.

    Raises:
        LeaseLostError: if the job is not this worker's, or is to be cancelled.
    """
    result = summarise(report)
    with resources.database.transaction() as transaction:
        job = job_changes.succeed(transaction, lease, result, report)
        if job is None:
            raise LeaseLostError
        artifacts.insert_all(transaction, lease.job_id, files)
        layer_files.forget(transaction, lease.job_id)
        registry_hand_offs.add(transaction, lease.job_id, automatic_targets(resources.settings))
        events.append(
            transaction, lease.job_id, EventType.SUCCEEDED, result.model_dump(mode="json")
        )
    return job


def discard_attempt(resources: Resources, job: JobRecord) -> None:
    """Remove the uploaded files of the job's attempt, as claimed, which did not succeed."""
    _discard(resources, job, attempt_prefix(job, job.fencing_token))


def discard_other_attempts(resources: Resources, job: JobRecord) -> None:
    """Remove left-overs of earlier attempts."""
    _discard(resources, job, job_prefix(job))


def unused_objects(resources: Resources, job: JobRecord, prefix: str) -> dict[str, int]:
    """Return the objects that no attempt needs, with their bytes, by key.

    Published files are needed: the commit may have succeeded without an answer. Finished layers
    are needed until the job has succeeded or expired: a retry resumes from them. Files of later
    attempts are needed too: the job may have been claimed again since.
    """
    # Listed before the rows are read: a file that is published in between has its row by then.
    stored = resources.store.sizes(prefix)
    with resources.database.transaction() as transaction:
        used = {file.key for file in artifacts.of_job(transaction, job.id)}
        used |= {file.key for file in layer_files.of_job(transaction, job.id)}
    return {
        key: size
        for key, size in stored.items()
        if key not in used and (attempt_token(key) or 0) <= job.fencing_token
    }


def _discard(resources: Resources, job: JobRecord, prefix: str) -> None:
    delete_objects(resources, unused_objects(resources, job, prefix))


def summarise(report: dict[str, Any]) -> JobResult:
    """Return the main numbers of a report; perplexity and divergence are of the first text."""
    evaluation = report.get("evaluation") or {}
    perplexity = (evaluation.get("perplexity") or [{}])[0]
    whole = (evaluation.get("speed") or {}).get("whole")
    return JobResult(
        params_before=report["params_before"],
        params_after=report["params_after"],
        bytes_before=report["bytes_before"],
        bytes_after=report["bytes_after"],
        perplexity_before=perplexity.get("dense"),
        perplexity_after=perplexity.get("compressed"),
        kl=perplexity.get("kl"),
        top1_agreement=perplexity.get("top1_agreement"),
        domain=perplexity.get("domain"),
        speedup=whole
        and Speedup(prefill=whole["prefill"]["ratio"], decode=whole["decode"]["ratio"]),
        achieved_ratio=_achieved_ratio(report),
    )


def _achieved_ratio(report: dict[str, Any]) -> float | None:
    before, after = report.get("compressible_before"), report.get("compressible_after")
    return 1.0 - after / before if before and after is not None else None


@dataclass
class _ByteCount:
    """Progress of the upload of several files."""

    total: int
    on_progress: Callable[[str, float], None]
    message: str = ""
    counted: int = 0

    def next_file(self, message: str) -> None:
        """Report the beginning of a file."""
        self.message = message
        self.add(0)

    def add(self, count: int) -> None:
        """Count bytes and report the finished fraction."""
        self.counted += count
        self.on_progress(self.message, self.counted / max(self.total, 1))


def _upload(
    resources: Resources, source: Path, name: str, prefix: str, on_bytes: Callable[[int], None]
) -> ArtifactRecord:
    sha256 = _sha256(source, on_bytes)
    key = f"{prefix}files/{name}"
    resources.store.put_file(key, source, media_type(name), on_bytes)
    # The directory was verified to load and answer rightly; equal bytes do so too.
    if resources.store.sha256(key, on_bytes) != sha256:
        raise PublicationError(f"{name} was damaged during the upload to the store")
    return ArtifactRecord(
        name=name,
        key=key,
        bytes=source.stat().st_size,
        sha256=sha256,
        media_type=media_type(name),
    )


def _sha256(file: Path, on_bytes: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_HASHED_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def _manifest(job: JobRecord, files: list[ArtifactRecord], report: dict[str, Any]) -> bytes:
    settings = {
        "model": job.model.model_dump(mode="json"),
        "compression": job.compression.model_dump(mode="json"),
        "evaluation": job.evaluation and job.evaluation.model_dump(mode="json"),
    }
    scored = job.evaluation.perplexity if job.evaluation else ()
    texts = (*job.compression.seen_sources, *scored)
    manifest = {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        "job_id": job.id,
        "attempt": job.attempt,
        **without_local_paths(settings, (job.model.ref, *texts)),
        "licence": report.get("base_licence"),
        "base_fingerprint": report.get("base_fingerprint"),
        "calibration_hash": report.get("calibration_hash"),
        "versions": program_versions(),
        "files": [
            {"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in files
        ],
    }
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()


def _put(resources: Resources, prefix: str, name: str, content: bytes) -> ArtifactRecord:
    key = prefix + name
    # After a restored dump, tokens repeat those of attempts that the database has lost.
    resources.store.replace(key, content, media_type(name))
    return ArtifactRecord(
        name=name,
        key=key,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        media_type=media_type(name),
    )
