"""The application behind a real socket, in this process: streams need one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings


@contextmanager
def serving(settings: Settings, port: int = 0) -> Iterator[tuple[str, FastAPI]]:
    """Serve the application and yield its URL and itself; close open watches at the end."""
    app = create_app(settings)
    with listening(app, port) as url:
        yield url, app


@contextmanager
def listening(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve any application and yield its URL."""
    started = threading.Event()
    server = _Server(uvicorn.Config(app, port=port, log_config=None), started)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup()
        self._ready.set()

    async def shutdown(self, sockets: list[object] | None = None) -> None:
        watching = getattr(self.config.app.state, "watching", None)  # type: ignore[union-attr]
        if watching is not None:
            watching.close()
        await super().shutdown()
