"""The client itself: what it offers, by resource."""

from __future__ import annotations

from types import TracebackType

import httpx

from app.client.asynchronous.downloads import AsyncDownloads
from app.client.asynchronous.jobs import AsyncJobs
from app.client.asynchronous.keys import AsyncKeys
from app.client.asynchronous.sweeps import AsyncSweeps
from app.client.asynchronous.transport import AsyncTransport
from app.client.asynchronous.uploads import AsyncUploads
from app.client.asynchronous.webhooks import AsyncWebhooks
from app.domain.audit import AuditList
from app.domain.comparison import Comparison
from app.domain.model_catalogue import ModelList
from app.domain.service import Service

TIMEOUT_SECONDS = 60.0
"""Longer than a long poll lasts, and than an event stream is silent."""
PATIENCE_SECONDS = 30.0


class AsyncClient:
    """One service. Also a context manager that closes its connections.

    Args:
        url: of the service, as `http://127.0.0.1:8000`.
        api_key: none is needed where the service asks for none.
        patience: seconds for which a request is sent again while the service is away or asks to
            wait. Requests that make something carry a key, by which it is made once.
        http: a client of httpx to use instead.
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
        self.sweeps = AsyncSweeps(self._transport)
        self.uploads = AsyncUploads(self._transport)
        self.webhooks = AsyncWebhooks(self._transport)
        self.keys = AsyncKeys(self._transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> ModelList:
        """What can be compressed here, and the newest of what has been."""
        return await self._transport.ask(ModelList, "GET", "/v1/models")

    async def compare(self, *job_ids: str) -> Comparison:
        """Settings and results of two to twenty jobs, side by side."""
        query = {"jobs": ",".join(job_ids)}
        return await self._transport.ask(Comparison, "GET", "/v1/compare", params=query)

    async def audit(self, *, limit: int = 100) -> AuditList:
        """The newest of the project's changing calls; needs the scope `admin`."""
        return await self._transport.ask(AuditList, "GET", "/v1/audit", params={"limit": limit})

    async def service(self) -> Service:
        """Who asks, and how much there is to do."""
        return await self._transport.ask(Service, "GET", "/v1/service")

    async def ready(self) -> bool:
        """Whether the service can work just now; it is not asked twice."""
        response = await self._http.get("/readyz")
        return response.is_success
