"""Small HTTP/1.1 client with keep-alive connections, for load tests on the same machine.

httpx spends about as much time on a request as the server does, which on two cores would be part of
the measurement. This client sends prepared bytes and reads status and length of the answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import cast
from urllib.parse import urlsplit

from httptools import HttpResponseParser


class _Connection(asyncio.Protocol):
    """One request at a time; the parser calls `on_status`, `on_body` and `on_message_complete`."""

    def __init__(self) -> None:
        self.closed = False
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport does not derive from asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        answer, self._answer = self._answer, None
        status, keep_alive = self._parser.get_status_code(), self._parser.should_keep_alive()
        self._parser = HttpResponseParser(self)
        if not keep_alive:
            self.close()
        if answer is not None and not answer.done():
            answer.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed without an answer"))

    def send(self, request: bytes) -> asyncio.Future[int]:
        """Send a request; the future has the status once the answer is complete."""
        if self._transport is None:
            raise RuntimeError("not connected")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.close()


class KeepAliveClient:
    """Client with one connection per concurrent request; free connections are reused."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        fields = {"Host": parts.netloc, "Accept": "application/json"} | (headers or {})
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._free: deque[_Connection] = deque()

    async def __aenter__(self) -> KeepAliveClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._free:
            self._free.pop().close()

    async def get(self, path: str) -> None:
        """Request a path and read the answer to its end.

        Raises:
            RuntimeError: if it is not 200.
        """
        request = f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode()
        connection, status = await self._request(request)
        if status != 200:
            raise RuntimeError(f"GET {path} returned {status}")
        if not connection.closed:
            self._free.append(connection)

    async def _request(self, request: bytes) -> tuple[_Connection, int]:
        while self._free:
            # The most recently used one: the server closes connections that are idle for long.
            connection = self._free.pop()
            if connection.closed:
                continue
            try:
                return connection, await connection.send(request)
            except ConnectionError:
                # The server closed it meanwhile; clients retry in that case.
                continue
        connection = await self._connect()
        return connection, await connection.send(request)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, *self._address)
        return connection
