"""Asynchronous client of a service."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import httpx

from intraslice_client import _bodies as bodies
from intraslice_client._async.downloads import AsyncDownloads
from intraslice_client._async.generations import AsyncGenerations
from intraslice_client._async.jobs import AsyncJobs
from intraslice_client._async.keys import AsyncKeys
from intraslice_client._async.sweeps import AsyncSweeps
from intraslice_client._async.transport import AsyncTransport
from intraslice_client._async.uploads import AsyncUploads
from intraslice_client._async.webhooks import AsyncWebhooks
from intraslice_client._requests import without_none

TIMEOUT_SECONDS = 60.0
"""Longer than a long poll, and than the pause between heartbeats of an event stream."""
PATIENCE_SECONDS = 30.0
"""Default time for which requests are retried."""


class AsyncClient:
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
        http: httpx.AsyncClient | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = http or httpx.AsyncClient(
            base_url=url, headers=headers, timeout=TIMEOUT_SECONDS
        )
        self._transport = AsyncTransport(self._http, patience)
        self.jobs = AsyncJobs(self._transport, AsyncDownloads(self._transport))
        self.generations = AsyncGenerations(self._transport)
        self.sweeps = AsyncSweeps(self._transport)
        self.uploads = AsyncUploads(self._transport)
        self.webhooks = AsyncWebhooks(self._transport)
        self.keys = AsyncKeys(self._transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def generate(
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
        generation = await self.generations.create(
            job_id,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            models=models,
        )
        return await self.generations.wait(job_id, generation.id, timeout=timeout)

    async def models(self) -> bodies.ModelList:
        """List the models that the service can compress, and recently compressed ones."""
        return await self._transport.fetch(bodies.ModelList, "GET", "/v1/models")

    async def server_paths(
        self, use: Literal["model", "data"] = "model", path: str | None = None
    ) -> tuple[bodies.PathEntry, ...]:
        """List one level of the directories of the server that jobs may name.

        Args:
            use: what the paths are for.
            path: directory to list; None lists the allowed ones.
        """
        query = without_none(use=use, path=path)
        entries: list[bodies.PathEntry] = []
        async for page in self._transport.pages(bodies.PathList, "/v1/server-paths", query):
            entries += page.data
        return tuple(entries)

    async def compare(self, *job_ids: str) -> bodies.Comparison:
        """Compare the settings and results of 2 to 20 jobs."""
        query = {"jobs": ",".join(job_ids)}
        return await self._transport.fetch(bodies.Comparison, "GET", "/v1/compare", params=query)

    async def audit(self, *, limit: int = 100) -> bodies.AuditList:
        """List the latest changing calls of the project; requires scope `admin`."""
        return await self._transport.fetch(
            bodies.AuditList, "GET", "/v1/audit", params={"limit": limit}
        )

    async def service(self) -> bodies.Service:
        """Return the caller's identity, and the load and the workers of the service."""
        return await self._transport.fetch(bodies.Service, "GET", "/v1/service")

    async def ready(self) -> bool:
        """Return True if the service is ready, False if it is not or does not respond.

        The request is not retried.
        """
        try:
            response = await self._http.get("/readyz")
        except httpx.TransportError:
            return False
        return response.is_success
