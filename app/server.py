"""The API as a process: uvicorn with a shutdown that lets running requests finish."""

from __future__ import annotations

import gc
import ipaddress
import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from types import FrameType

import uvicorn

from app.adapters.process_state import StateFile, state_file
from app.main import app_factory
from app.services.resources import open_resources
from app.services.startup import check_servers
from app.settings import Settings
from app.telemetry import get_logger
from app.telemetry.traces import stop_tracing
from intraslice_core.errors import ConfigurationError

_log = get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """A server that drains at the first signal and exits at once at the second.

    The port stays open for `notice_seconds` after the first signal. Meanwhile `/readyz` reports
    "draining", so that a load balancer removes this server before the port closes.

    Args:
        config: uvicorn's configuration.
        draining: set at the first signal.
        end_watches: ends event streams and long polls.
        notice_seconds: time between the first signal and the closing of the port.
        state: state file of this process, written once the port is open.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        draining: threading.Event,
        end_watches: Callable[[], None],
        notice_seconds: float,
        state: StateFile,
    ) -> None:
        super().__init__(config)
        self._state = state
        self._draining = draining
        self._end_watches = end_watches
        self._notice_seconds = notice_seconds
        self._close_at = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.servers:
            self._state.write(_local_url(self.servers[0].sockets[0]))
        # All objects that exist by now are permanent. A collection that traverses them frees
        # nothing and stalls every request for some 60 ms.
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._draining.is_set():
            self.should_exit = self.force_exit = True
            return
        self._close_at = time.monotonic() + self._notice_seconds
        self._draining.set()

    async def on_tick(self, counter: int) -> bool:
        if time.monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Streams and long polls would last as long as their jobs; their clients reconnect.
        self._end_watches()
        await super().shutdown(sockets)


def run_server(settings: Settings, descriptor: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: settings of this process.
        descriptor: file descriptor of an inherited, bound socket to serve on.

    Raises:
        ConfigurationError: if the address cannot be listened on.
        UnavailableError: if the database or the broker rejects the settings.
    """
    app = app_factory()
    with closing(open_resources(settings)) as resources:
        check_servers(resources)
    if descriptor is None:
        _require_free_port(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # uvicorn logs through the application's handlers
        access_log=False,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
    )
    if settings.trusts_every_address:
        _log.warning(
            "every_proxy_trusted",
            forwarded_allow_ips=settings.forwarded_allow_ips,
            effect="clients can forge their address: list the proxies' addresses instead",
        )
    inherited = [socket.socket(fileno=descriptor)] if descriptor is not None else None
    try:
        with state_file(settings.data_dir, "serve") as state:
            server = DrainingServer(
                config,
                draining=app.state.draining,
                end_watches=lambda: app.state.watching.close(),
                notice_seconds=settings.drain_notice_seconds,
                state=state,
            )
            server.run(sockets=inherited)
    finally:
        stop_tracing()


def _require_free_port(host: str, port: int) -> None:
    """Raise if the address cannot be bound; uvicorn would log that among other lines.

    Raises:
        ConfigurationError: naming the address and the reason.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            field="INTRASLICE_PORT",
            hint="stop the other process, or choose another INTRASLICE_PORT or INTRASLICE_HOST",
        ) from error


def _local_url(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches the API."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "::1" if address.version == 6 else "127.0.0.1"
    return f"http://[{host}]:{port}" if address.version == 6 else f"http://{host}:{port}"
