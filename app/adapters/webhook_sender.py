"""HTTP POST to webhook receivers, without redirects, proxies or a second DNS lookup."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpcore
import httpx

from app.adapters.webhook_destinations import Destination, DestinationGuard
from app.domain.errors import DestinationRejectedError
from app.domain.webhook import Answer
from intraslice_core import __version__

_MAX_ERROR = 300
_HEADERS = {
    "content-type": "application/json",
    "user-agent": f"intraslice/{__version__}",
    "connection": "close",
}


class WebhookSender:
    """Sender with a limit of `timeout` seconds from the first packet to the status."""

    def __init__(
        self, guard: DestinationGuard, *, timeout: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self.guard = guard
        self._timeout = timeout
        self._tls = tls or httpx.create_ssl_context()

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send and return the receiver's answer; its body is not read, so it cannot be too long."""
        try:
            return self._post(self.guard.parse(url), headers, body)
        except DestinationRejectedError as error:
            return Answer(error=error.message)
        except httpcore.TimeoutException:
            return Answer(error=f"no answer within {self._timeout:g} s")
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            return Answer(error=f"{type(error).__name__}: {error}"[:_MAX_ERROR])

    def _post(self, destination: Destination, headers: Mapping[str, str], body: bytes) -> Answer:
        url = httpcore.URL(
            scheme="https" if destination.secure else "http",
            host=destination.host,
            port=destination.port,
            target=destination.target,
        )
        backend = _CheckedBackend(self.guard, destination, time.monotonic() + self._timeout)
        fields = list({**_HEADERS, **headers}.items())
        with (
            httpcore.ConnectionPool(ssl_context=self._tls, network_backend=backend) as pool,
            pool.stream("POST", url, headers=fields, content=body) as response,
        ):
            return Answer(status=response.status, retry_after=_retry_after(response))


class _CheckedBackend(httpcore.NetworkBackend):
    """Network backend that connects only to addresses that the guard has checked.

    TLS still verifies the certificate against the name in the URL.
    """

    def __init__(self, guard: DestinationGuard, destination: Destination, deadline: float) -> None:
        self._guard = guard
        self._destination = destination
        self._deadline = deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # the deadline is the limit
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        if (host, port) != (self._destination.host, self._destination.port):
            raise httpcore.ConnectError("only the webhook's own host is connected to")
        problem: httpcore.ConnectError | None = None
        for address in self._guard.addresses(self._destination):
            try:
                stream = self._sockets.connect_tcp(
                    address, port, _left(self._deadline), local_address, socket_options
                )
            except httpcore.ConnectError as error:
                problem = error
            else:
                return _HurriedStream(stream, self._deadline)
        raise problem or httpcore.ConnectError("the host has no address")


class _HurriedStream(httpcore.NetworkStream):
    """A stream with one deadline, which a receiver cannot extend by sending single bytes."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _HurriedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time is up")
    return left


def _retry_after(response: httpcore.Response) -> float:
    """Return `Retry-After` in seconds; its form with a date is ignored."""
    for name, value in response.headers:
        if name.lower() == b"retry-after" and value.isdigit():
            return float(value[:9])
    return 0.0
