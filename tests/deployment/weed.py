"""A real S3 server for the deployment's test: SeaweedFS from its wheel, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx
import obstore
from obstore.store import S3Store

_READY_SECONDS = 90
_PARTS = ("s3", "master", "volume", "filer", "admin")


class S3Server:
    """`weed mini` with one bucket; every port is chosen free."""

    def __init__(self, directory: Path, bucket: str, user: str, secret: str) -> None:
        self._directory = directory
        self._bucket = bucket
        self._credentials = {"AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": secret}
        self._ports = _free_ports(2 * len(_PARTS))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    def __enter__(self) -> S3Server:
        self._directory.mkdir(parents=True)
        with (self._directory / "weed.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                env={**os.environ, **self._credentials, "GOMEMLIMIT": "200MiB"},
                stdout=log,
                stderr=log,
            )
        self._wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _command(self) -> list[str]:
        ports = [
            f"-{part}.{kind}={port}"
            for (part, kind), port in zip(
                ((part, kind) for part in _PARTS for kind in ("port", "port.grpc")),
                self._ports,
                strict=True,
            )
        ]
        return [
            str(Path(sys.executable).with_name("weed")),
            "-logtostderr=true",
            "mini",
            f"-dir={self._directory}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-filer.localSocket={self._directory}/f.sock",
            f"-s3.localSocket={self._directory}/s3.sock",
            f"-bucket={self._bucket}",
            *ports,
        ]

    def _wait(self) -> None:
        """Ready is who takes an object."""
        store = S3Store(
            self._bucket,
            endpoint=self.url,
            region="us-east-1",
            access_key_id=self._credentials["AWS_ACCESS_KEY_ID"],
            secret_access_key=self._credentials["AWS_SECRET_ACCESS_KEY"],
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                obstore.put(store, "probe", b"1")
                assert httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200
                obstore.delete(store, "probe")
                return
            except Exception:  # the server is not there yet, in one way or another
                log = (self._directory / "weed.log").read_text()
                assert time.monotonic() < deadline, log[-3000:]
                time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
