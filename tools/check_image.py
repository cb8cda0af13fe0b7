"""Run a job in a built image, as a hardened deployment would: `check_image.py IMAGE`.

Starts PostgreSQL, Valkey and an S3 server on loopback, then `migrate`, `serve` and `worker` in
containers of podman: as the image's user, with a read-only root and without capabilities. Submits
a job with GGUF export and evaluation, downloads and verifies its artifacts, and stops the
services. Prints the sizes, and a JSON object as the last line. Needs root, podman and runc.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import redis
from psycopg import sql

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.process import Command, EmbeddedError
from app.embedded.seaweed import EmbeddedS3
from app.embedded.valkey import EmbeddedValkey
from intraslice_client import (
    CalibrationConfig,
    Client,
    ClientError,
    CompressionConfig,
    EvaluationConfig,
    ModelSource,
)
from intraslice_core.checkpoints.manifest import require_manifest

READY_SECONDS = 120
JOB_SECONDS = 600
STOP_SECONDS = 40
LARGEST_PARTS = 12
LOG_WIDTH = 400
HARDENING = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--tmpfs", "/tmp", "--mount", "type=tmpfs,destination=/var/lib/intraslice,U=true"),
)
SANDBOX = (
    # Work in containers that lack cgroup controllers, high limits and networks of their own.
    *("--pull", "never", "--network", "host", "--log-driver", "k8s-file", "--no-healthcheck"),
    *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4000:4000"),
)
SIZES = """
import json, os, pathlib, sysconfig
packages = pathlib.Path(sysconfig.get_path("purelib"))
def size(path):
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())
print(json.dumps({path.name: size(path) for path in packages.iterdir()}))
"""


class CheckError(Exception):
    """A step of the check failed."""


class LoopbackPostgres(EmbeddedPostgres):
    """PostgreSQL that also listens on a free port of 127.0.0.1, with a password."""

    def __init__(self, directory: Path, password: str) -> None:
        super().__init__(directory, durable=False)
        self._password = password
        self.port = free_port()
        # The name of the unix socket contains the port. libpq reads it from here.
        os.environ["PGPORT"] = str(self.port)

    @property
    def loopback_url(self) -> str:
        """Database URL over TCP."""
        return f"postgresql+psycopg://intraslice:{self._password}@127.0.0.1:{self.port}/intraslice"

    def require_password(self) -> None:
        """Set the password and require it over TCP."""
        statement = sql.SQL("ALTER ROLE intraslice PASSWORD {}").format(self._password)
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement)
            rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            (self.directory / "data" / "pg_hba.conf").write_text(rules)
            connection.execute("SELECT pg_reload_conf()")

    def _command(self, programs: Path) -> Command:
        command = super()._command(programs)
        options = ["-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1"]
        return replace(command, arguments=[*command.arguments, *options])


class LoopbackValkey(EmbeddedValkey):
    """Valkey that also listens on a free port of 127.0.0.1, with a password."""

    def __init__(self, directory: Path, password: str) -> None:
        super().__init__(directory)
        self._password = password
        self._port = free_port()

    @property
    def loopback_url(self) -> str:
        """Broker URL over TCP."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def require_password(self) -> None:
        """Require the password of every new connection."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.config_set("requirepass", self._password)

    def _prepare(self) -> Command:
        command = super()._prepare()
        options = ["--bind", "127.0.0.1", "--port", str(self._port)]
        return replace(command, arguments=[*command.arguments, *options])


class Podman:
    """Containers of one image in a storage directory."""

    def __init__(self, image: str, options: list[str], environment: dict[str, str]) -> None:
        self.image = image
        self._program = ["podman", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        self._program += options
        self._environment = environment

    def call(self, *arguments: str, check: bool = True) -> str:
        """Run podman and return its standard output.

        Raises:
            CheckError: if it fails; contains the end of its output.
        """
        done = subprocess.run(
            [*self._program, *arguments],
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            output = (done.stdout + done.stderr)[-3000:]
            raise CheckError(f"podman {arguments[0]}: exit code {done.returncode}\n{output}")
        return done.stdout

    def run(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run a command in a hardened container and return its output, without secrets in ps."""
        variables = [part for name in self._environment for part in ("--env", name)]
        runtime = ("--runtime", shutil.which("runc") or "/usr/sbin/runc")
        start = ("run", *runtime, *SANDBOX, *HARDENING, *variables, *options)
        return self.call(*start, self.image, *command)

    @contextmanager
    def service(self, name: str, *options: str) -> Iterator[str]:
        """Run a process of the service in a container while the context lasts."""
        container = f"intraslice-{name}-{secrets.token_hex(4)}"
        self.run("intraslice", name, options=("--detach", "--name", container, *options))
        try:
            yield container
        except BaseException:
            print(f"── {name}", *self._log_lines(container), sep="\n")
            raise
        finally:
            self.call("rm", "--force", "--time", "0", container, check=False)

    def _log_lines(self, container: str) -> list[str]:
        """Return the shortened last lines of a container's stdout and stderr."""
        done = subprocess.run(
            [*self._program, "logs", "--tail", "40", container],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return [line[:LOG_WIDTH] for line in done.stdout.splitlines()]

    def stop(self, container: str) -> None:
        """Stop a container with its stop signal.

        Raises:
            CheckError: if the process had to be killed or returned an error.
        """
        self.call("stop", "--time", str(STOP_SECONDS), container)
        code = self.call("inspect", "--format", "{{.State.ExitCode}}", container).strip()
        if code != "0":
            raise CheckError(f"{container} ended with exit code {code} after SIGTERM")


def main() -> int:
    """Check an image and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("image", help="image to check, such as localhost/intraslice")
    parser.add_argument("--storage", help="storage root of podman (default: podman's own)")
    parser.add_argument("--runroot", help="run directory of podman (default: podman's own)")
    parser.add_argument("--driver", help="storage driver, overlay or vfs (default: podman's own)")
    parser.add_argument("--build-seconds", type=float, help="printed with the results")
    arguments = parser.parse_args()
    chosen = {
        "--root": arguments.storage,
        "--runroot": arguments.runroot,
        "--storage-driver": arguments.driver,
    }
    options = [part for name, value in chosen.items() if value for part in (name, value)]
    try:
        with tempfile.TemporaryDirectory(prefix="intraslice-image-") as directory:
            result = check(arguments.image, options, Path(directory))
    except (CheckError, ClientError, EmbeddedError, TimeoutError) as error:
        print(f"The image {arguments.image} failed the check: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"build_seconds": arguments.build_seconds, **result}))
    return 0


def check(image: str, options: list[str], directory: Path) -> dict[str, object]:
    """Run a job in the image, print the sizes and return the results."""
    directory.chmod(0o755)
    with ExitStack() as stack:
        password, key = secrets.token_hex(16), secrets.token_hex(32)
        database = stack.enter_context(LoopbackPostgres(directory / "postgres", password))
        broker = stack.enter_context(LoopbackValkey(directory / "valkey", password))
        store = stack.enter_context(EmbeddedS3(directory / "s3"))
        database.require_password()
        broker.require_password()
        port = free_port()
        environment = {
            **store.environment,
            "INTRASLICE_DATABASE_URL": database.loopback_url,
            "INTRASLICE_BROKER_URL": broker.loopback_url,
            "INTRASLICE_ARTIFACT_STORE": store.url,
            "INTRASLICE_API_KEY": key,
            "INTRASLICE_SIGNING_KEY": secrets.token_hex(32),
            "INTRASLICE_HOST": "127.0.0.1",
            "INTRASLICE_PORT": str(port),
            "INTRASLICE_MODEL_ROOTS": '["/models"]',
        }
        podman = Podman(image, options, environment)
        started = time.monotonic()
        files = run_job(podman, Client(f"http://127.0.0.1:{port}", key), directory)
        seconds = time.monotonic() - started
    sizes = print_sizes(podman)
    return {**sizes, "job": "succeeded", "files": files, "check_seconds": round(seconds, 1)}


def run_job(podman: Podman, client: Client, directory: Path) -> int:
    """Migrate, start API and worker, run a job, check their health, stop both.

    Returns the number of verified files.

    Raises:
        CheckError: if a process fails, or if a format is missing among the artifacts.
        ClientError: if the job fails or a download is damaged.
    """
    from tests.intraslice_core.export.models import llama_with_merges

    model = llama_with_merges(directory / "models" / "tiny")
    # Saved with mode 0600; the image's user is neither this user nor in its group.
    for file in model.iterdir():
        file.chmod(0o644)
    mount = ("--volume", f"{model.parent}:/models:ro")
    print(podman.run("intraslice", "migrate", options=("--rm",)).strip() or "migrated")
    with client, podman.service("serve", *mount) as api, podman.service("worker", *mount) as worker:
        wait_until_ready(client)
        job = client.jobs.create(
            ModelSource(source="path", ref="/models/tiny"),
            CompressionConfig(
                ratio=0.3,
                target="stock",
                exports=("safetensors", "gguf-f16"),
                calibration=CalibrationConfig(samples=8, sequence_length=64),
                batch_size=4,
                round_to=4,
            ),
            evaluation=EvaluationConfig(max_tokens=512, context_length=64, benchmark=False),
        )
        client.jobs.wait(job.id, timeout=JOB_SECONDS)
        result = directory / "result"
        client.jobs.download(job.id, result)
        for container in (api, worker):
            podman.call("exec", container, "intraslice", "healthcheck")
        podman.stop(worker)
        podman.stop(api)
    if not list(result.rglob("*.gguf")):
        raise CheckError("the job succeeded without the requested GGUF file")
    return require_manifest(result)


def wait_until_ready(client: Client) -> None:
    """Wait until the API reports that it is ready.

    Raises:
        CheckError: if it does not in time.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if client.ready():
                return
        except (ClientError, httpx.TransportError):
            pass
        time.sleep(0.2)
    raise CheckError(f"the API was not ready after {READY_SECONDS} s")


def print_sizes(podman: Podman) -> dict[str, object]:
    """Print the image's largest parts; return the sizes of the image and of torch in bytes."""
    total = int(podman.call("image", "inspect", "--format", "{{.Size}}", podman.image))
    parts = json.loads(podman.run("python", "-c", SIZES, options=("--rm",)).splitlines()[-1])
    base = total - sum(parts.values())
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    largest = ordered[:LARGEST_PARTS]
    rest = sum(size for _, size in ordered[LARGEST_PARTS:])
    rows = [("image", total), ("Debian, Python", base), *largest, ("other packages", rest)]
    for name, size in rows:
        print(f"{name:<28}{size / 1e6:9.1f} MB")
    return {"image_bytes": total, "torch_bytes": parts["torch"]}


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
