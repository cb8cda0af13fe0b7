"""The client itself: what it offers, by resource."""

from __future__ import annotations

from types import TracebackType

import httpx

from app.client.synchronous.downloads import Downloads
from app.client.synchronous.jobs import Jobs
from app.client.synchronous.keys import Keys
from app.client.synchronous.sweeps import Sweeps
from app.client.synchronous.transport import Transport
from app.client.synchronous.uploads import Uploads
from app.client.synchronous.webhooks import Webhooks
from app.domain.audit import AuditList
from app.domain.comparison import Comparison
from app.domain.model_catalogue import ModelList
from app.domain.service import Service

TIMEOUT_SECONDS = 60.0
"""Longer than a long poll lasts, and than an event stream is silent."""
PATIENCE_SECONDS = 30.0


class Client:
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
        http: httpx.Client | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = http or httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS)
        self._transport = Transport(self._http, patience)
        self.jobs = Jobs(self._transport, Downloads(self._transport))
        self.sweeps = Sweeps(self._transport)
        self.uploads = Uploads(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.keys = Keys(self._transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> ModelList:
        """What can be compressed here, and the newest of what has been."""
        return self._transport.ask(ModelList, "GET", "/v1/models")

    def compare(self, *job_ids: str) -> Comparison:
        """Settings and results of two to twenty jobs, side by side."""
        query = {"jobs": ",".join(job_ids)}
        return self._transport.ask(Comparison, "GET", "/v1/compare", params=query)

    def audit(self, *, limit: int = 100) -> AuditList:
        """The newest of the project's changing calls; needs the scope `admin`."""
        return self._transport.ask(AuditList, "GET", "/v1/audit", params={"limit": limit})

    def service(self) -> Service:
        """Who asks, and how much there is to do."""
        return self._transport.ask(Service, "GET", "/v1/service")

    def ready(self) -> bool:
        """Whether the service can work just now; it is not asked twice."""
        response = self._http.get("/readyz")
        return response.is_success
