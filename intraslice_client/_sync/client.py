"""Asynchronous client of a service."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import httpx

from intraslice_client import _bodies as bodies
from intraslice_client._requests import without_none
from intraslice_client._sync.downloads import Downloads
from intraslice_client._sync.generations import Generations
from intraslice_client._sync.jobs import Jobs
from intraslice_client._sync.keys import Keys
from intraslice_client._sync.sweeps import Sweeps
from intraslice_client._sync.transport import Transport
from intraslice_client._sync.uploads import Uploads
from intraslice_client._sync.webhooks import Webhooks

TIMEOUT_SECONDS = 60.0
"""Longer than a long poll, and than the pause between heartbeats of an event stream."""
PATIENCE_SECONDS = 30.0
"""Default time for which requests are retried."""


class Client:
    """Client of one service, and a context manager that closes its connections.

    Create requests carry an idempotency key and are retried while the service is unreachable.

    Args:
        url: base URL of the service, such as `http://127.0.0.1:8000`.
        api_key: API key; not needed if the service runs without authentication.
        patience: seconds for which a request is retried while the service is unreachable,
            unavailable or rate-limiting.
        http: httpx client to use; replaces `url` and `api_key`.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        patience: float = PATIENCE_SECONDS,
        http: httpx.Client | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = http or httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS)
        self._transport = Transport(self._http, patience)
        self.jobs = Jobs(self._transport, Downloads(self._transport))
        self.generations = Generations(self._transport)
        self.sweeps = Sweeps(self._transport)
        self.uploads = Uploads(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.keys = Keys(self._transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def generate(
        self,
        job_id: str,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        models: Sequence[Literal["dense", "compressed"]] | None = None,
        timeout: float | None = None,
    ) -> bodies.Generation:
        """Send a prompt to the models of a succeeded job, and return both answers.

        The service must have its playground on.

        Args:
            job_id: id of the job.
            prompt: text to continue.
            max_new_tokens: largest number of tokens of each answer; None: 64.
            temperature: temperature of sampling; None takes the most likely token each time.
            seed: seed of sampling; None: 0.
            models: models to ask; None asks both.
            timeout: limit in seconds; None waits without limit.

        Raises:
            GenerationNotDoneError: if the generation failed or was cancelled.
            TimeoutError: if there is no answer after `timeout` seconds.
        """
        generation = self.generations.create(
            job_id,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            models=models,
        )
        return self.generations.wait(job_id, generation.id, timeout=timeout)

    def models(self) -> bodies.ModelList:
        """List the models that the service can compress, and recently compressed ones."""
        return self._transport.fetch(bodies.ModelList, "GET", "/v1/models")

    def server_paths(
        self, use: Literal["model", "data"] = "model", path: str | None = None
    ) -> tuple[bodies.PathEntry, ...]:
        """List one level of the directories of the server that jobs may name.

        Args:
            use: what the paths are for.
            path: directory to list; None lists the allowed ones.
        """
        query = without_none(use=use, path=path)
        entries: list[bodies.PathEntry] = []
        for page in self._transport.pages(bodies.PathList, "/v1/server-paths", query):
            entries += page.data
        return tuple(entries)

    def compare(self, *job_ids: str) -> bodies.Comparison:
        """Compare the settings and results of 2 to 20 jobs."""
        query = {"jobs": ",".join(job_ids)}
        return self._transport.fetch(bodies.Comparison, "GET", "/v1/compare", params=query)

    def audit(self, *, limit: int = 100) -> bodies.AuditList:
        """List the latest changing calls of the project; requires scope `admin`."""
        return self._transport.fetch(bodies.AuditList, "GET", "/v1/audit", params={"limit": limit})

    def service(self) -> bodies.Service:
        """Return the caller's identity, and the load and the workers of the service."""
        return self._transport.fetch(bodies.Service, "GET", "/v1/service")

    def ready(self) -> bool:
        """Return True if the service is ready, False if it is not or does not respond.

        The request is not retried.
        """
        try:
            response = self._http.get("/readyz")
        except httpx.TransportError:
            return False
        return response.is_success
