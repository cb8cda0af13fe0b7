"""Client of a deployment, and reader of its bucket, that retry while something is down."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import obstore
from deployment import is_ready
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import from_url

from app.adapters.database import artifacts, layer_files
from app.domain.artifact import ArtifactRecord
from app.services.resources import Resources

TIMED = frozenset({"manifest.json", "manifest.json.sig", "intraslice_report.json", "README.md"})
"""Files that contain the seconds of a run, or the name of its job."""
POLL_SECONDS = 0.1
ENDS = ("succeeded", "failed", "cancelled")
_Answer = TypeVar("_Answer")


class Service:
    """Client of the API that retries while the API is unreachable.

    Args:
        url: address of the API.
        api_key: key of the operator.
        patience_seconds: time after which an unanswered request, or an unfinished job, is lost.
    """

    def __init__(self, url: str, api_key: str, patience_seconds: float) -> None:
        self.patience_seconds = patience_seconds
        self._url = url
        self._http = httpx.Client(
            base_url=url,
            timeout=10.0,
            trust_env=False,
            follow_redirects=True,
            headers={"Authorization": f"Bearer {api_key}"},
        )

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Return the first answer other than a 5xx, retrying on those and on connection errors.

        Raises:
            TimeoutError: if there is none in time.
        """
        deadline = time.monotonic() + self.patience_seconds
        problem = ""
        while time.monotonic() < deadline:
            try:
                answer = self._http.request(method, path, **more)
                if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    return answer
                problem = f"{answer.status_code} {answer.text[:200]}"
            except httpx.TransportError as error:
                problem = str(error)
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"{method} {path}: no answer, last {problem!r}")

    def request(self, method: str, path: str, **more: Any) -> Any:
        """Return the JSON answer of a request that must succeed."""
        return self.send(method, path, **more).raise_for_status().json()

    def submit(self, model: Path, ratio: float, key: str) -> str:
        """Submit a job; the idempotency key makes one job of all retries."""
        calibration = {"samples": 128, "sequence_length": 64}
        compression = {"ratio": ratio, "calibration": calibration, "round_to": 2}
        body = {
            "model": {"source": "path", "ref": str(model)},
            "compression": compression,
            "evaluation": None,
        }
        job: dict[str, Any] = self.request(
            "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key}
        )
        return str(job["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job."""
        job: dict[str, Any] = self.request("GET", f"/v1/jobs/{job_id}")
        return job

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Return the job's events."""
        return list(
            self.request("GET", f"/v1/jobs/{job_id}/events", params={"limit": 1000})["data"]
        )

    def is_ready(self) -> bool:
        """Return whether database, broker and store answer."""
        return is_ready(self._http, self._url)

    def succeeds(self, job_id: str) -> bool:
        """Wait for the job's end and return whether it succeeded; an endless job did not."""
        return self.wait_for(job_id, ENDS) == "succeeded"

    def wait_for(self, job_id: str, states: Iterable[str]) -> str:
        """Return the job's state once it is one of these, or the last state after the patience."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            state = str(self.job(job_id)["state"])
            if state in states or time.monotonic() > deadline:
                return state
            time.sleep(POLL_SECONDS)

    def digests(self, job_id: str) -> dict[str, str]:
        """Download every artifact and return its SHA-256 by name."""
        files = self.request("GET", f"/v1/jobs/{job_id}/artifacts")["data"]
        digests = {file["name"]: self._digest(file) for file in files}
        return {name: digest for name, digest in digests.items() if name not in TIMED}

    def _digest(self, file: dict[str, Any]) -> str:
        answer = self.send("GET", file["url"])
        if not answer.is_success:
            return f"not downloaded: {answer.status_code}"
        digest = hashlib.sha256(answer.content).hexdigest()
        return digest if digest == file["sha256"] else f"{digest} damaged"


class Bucket:
    """The objects of the deployment's jobs, compared with the rows of the database.

    Args:
        resources: clients of the deployment's database and bucket.
        patience_seconds: time for which the bucket may be unavailable.
    """

    def __init__(self, resources: Resources, patience_seconds: float) -> None:
        self._resources = resources
        self._patience_seconds = patience_seconds
        self._store = from_url(resources.settings.store_url)

    def publications(self, job_id: str) -> int:
        """Return how many attempts at the job have published files: 1 after a success.

        Counts the attempts that own a published file, and the manifests in the bucket that equal
        the published one. A killed attempt may leave a manifest, which names that attempt.
        """
        files = self._published(job_id)
        attempts = {_attempt(file.key) for file in files}
        published = {file.sha256 for file in files if file.name == "manifest.json"}
        manifests = [
            key
            for key in self._keys()
            if f"/{job_id}/" in f"/{key}" and key.endswith("/manifest.json")
        ]
        equal = [key for key in manifests if self._sha256(key) in published]
        return max(len(attempts), len(equal))

    def missing_objects(self, job_ids: Iterable[str]) -> list[str]:
        """Return the keys of published files that the bucket does not hold."""
        named = {file.key for job_id in job_ids for file in self._published(job_id)}
        return sorted(_below_jobs(named) - _below_jobs(self._keys()))

    def orphaned_objects(self, job_ids: Iterable[str]) -> list[str]:
        """Return the keys of the bucket's objects of jobs that no row of these jobs names."""
        named = set()
        for job_id in job_ids:
            named |= {file.key for file in self._published(job_id)}
            with self._resources.database.transaction() as transaction:
                named |= {file.key for file in layer_files.of_job(transaction, job_id)}
        stored = [key for key in self._keys() if "jobs/" in key]
        return sorted(_below_jobs(stored) - _below_jobs(named))

    def _published(self, job_id: str) -> list[ArtifactRecord]:
        with self._resources.database.transaction() as transaction:
            return artifacts.of_job(transaction, job_id)

    def _keys(self) -> list[str]:
        return self._retried(
            lambda: [entry["path"] for page in obstore.list(self._store) for entry in page]
        )

    def _sha256(self, key: str) -> str:
        """Return an object's hash; empty if maintenance has removed the object meanwhile."""
        try:
            content = self._retried(lambda: bytes(obstore.get(self._store, key).bytes()))
        except NotFoundError:
            return ""
        return hashlib.sha256(content).hexdigest()

    def _retried(self, read: Callable[[], _Answer]) -> _Answer:
        """Read from the bucket, with retries.

        A restarted SeaweedFS lists its objects, and so is ready, seconds before it can read them.
        """
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                return read()
            except NotFoundError:
                raise
            except BaseError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)


def _below_jobs(keys: Iterable[str]) -> set[str]:
    """Return the keys from `jobs/` on: a deployment may have a prefix of its own."""
    return {key[key.find("jobs/") :] for key in keys}


def _attempt(key: str) -> str:
    """Return the part of a key that names the job's attempt."""
    return key.split("/attempts/", 1)[-1].split("/", 1)[0]
