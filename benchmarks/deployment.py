"""A deployment like production on one machine, whose processes `faults.py` kills.

nginx in front of two APIs, two workers, a scheduler, PostgreSQL, Valkey and SeaweedFS. Each process
has a data directory of its own, as if it ran on a machine of its own. Whatever dies is restarted
without limit, as by systemd's `Restart=always`.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from app.embedded.group import Group, Member
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.process import Command, EmbeddedError, ManagedProcess
from app.embedded.seaweed import EmbeddedS3
from app.embedded.server_process import ServerProcess
from app.embedded.valkey import EmbeddedValkey

CHILD = "child"
NGINX = "nginx"
_RESTART_SECONDS = 0.3
_READY_SECONDS = 180.0
_MIGRATION_SECONDS = 120.0
_KILL_SECONDS = 60.0
"""Longest wait for a process that is being restarted, so that it can be killed."""
_POLL_SECONDS = 0.05
_EXAMPLE = Path(__file__).parents[1] / "examples" / "reverse_proxy" / "nginx.conf"
NGINX_CONFIGURATION = """\
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  {example}
}}
"""


class Deployment:
    """A supervised group of all processes, also usable as a context manager.

    Args:
        directory: receives all data, and the logs in `logs`.
        settings: environment of the APIs, workers and scheduler, beside this process's own.
    """

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self.directory = directory
        self.api_key = secrets.token_hex(16)
        self.environment: dict[str, str] = {}
        """Environment of the processes; empty before the start."""
        self._settings = settings
        ports = _free_ports(4)
        self._nginx_ports, self._api_ports = ports[:2], ports[2:]
        self._group = Group(lambda _line: None, restarts=lambda _now, _crashes: _RESTART_SECONDS)
        self._members: dict[str, Member] = {}
        self._servers: dict[str, ServerProcess] = {}
        self._nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        self._turns = {target: itertools.cycle(names) for target, names in self._roles().items()}

    @property
    def url(self) -> str:
        """URL of nginx, or of the first API where nginx is not installed."""
        port = self._nginx_ports[0] if self._nginx else self._api_ports[0]
        return f"http://127.0.0.1:{port}"

    @property
    def targets(self) -> tuple[str, ...]:
        """Roles of the processes that can be killed here."""
        return (CHILD, *self._turns)

    def start(self) -> None:
        """Start everything and return when all APIs are ready.

        Raises:
            EmbeddedError: if a process does not start.
        """
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        self._start_servers()
        migration = ManagedProcess(self._program("migrate", "migrate"))
        if migration.wait(_MIGRATION_SECONDS) != 0:
            migration.stop()
            raise EmbeddedError(f"the database migration failed:\n{migration.log_tail(40)}")
        for number, port in enumerate(self._api_ports, 1):
            self._add(self._program(f"API {number}", "serve", INTRASLICE_PORT=str(port)))
        for name in ("worker", "second worker"):
            self._add(self._program(name, "worker"))
        self._add(self._program("scheduler", "scheduler"))
        if self._nginx is not None:
            self._add(self._nginx_command(self._nginx))
        self._wait_until_ready()

    def run(self, until: Callable[[], bool]) -> None:
        """Restart dead processes until `until` returns True.

        Call it from the thread that called `start`: processes end with the thread that started
        them.
        """
        self._group.run(until)

    def kill(self, target: str) -> bool:
        """Kill a process of this role; return False if there is none.

        There may be no child. A process of another role is waited for while it is being restarted.
        Of two APIs, each is killed in turn.
        """
        if target == CHILD:
            return any(_kill(process) for process in self._children())
        name = next(self._turns[target])
        deadline = time.monotonic() + _KILL_SECONDS
        while time.monotonic() < deadline:
            if any(_kill(process) for process in self._processes(name)):
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def __enter__(self) -> Deployment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The programs are independent: signal all before waiting for any.
        for member in self._members.values():
            if member.process is not None and member.stop is None:
                member.process.request_stop()
        self._group.stop()

    def _roles(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the members of each role."""
        single = ("worker", "second worker", "scheduler", NGINX)
        servers = (EmbeddedS3.name, EmbeddedValkey.name, EmbeddedPostgres.name)
        roles: dict[str, tuple[str, ...]] = {name: (name,) for name in (*single, *servers)}
        roles["API"] = ("API 1", "API 2")
        if self._nginx is None:
            del roles[NGINX]
        return roles

    def _start_servers(self) -> None:
        postgres = EmbeddedPostgres(self.directory / "postgres")
        valkey = EmbeddedValkey(self.directory / "valkey")
        store = EmbeddedS3(self.directory / "s3")
        servers: tuple[ServerProcess, ...] = (postgres, valkey, store)
        self._servers = {server.name: server for server in servers}
        for server in servers:
            self._supervise(Member(name=server.name, start=server.start, stop=server.stop))
        self.environment = {
            **os.environ,
            **self._settings,
            **store.environment,
            "INTRASLICE_ARTIFACT_STORE": store.url,
            "INTRASLICE_DATABASE_URL": postgres.url,
            "INTRASLICE_BROKER_URL": valkey.url,
            "INTRASLICE_HOST": "127.0.0.1",
            "INTRASLICE_API_KEY": self.api_key,
            "INTRASLICE_SIGNING_KEY": secrets.token_hex(16),
            "INTRASLICE_MAINTENANCE_IN_WORKER": "false",
        }

    def _add(self, command: Command) -> None:
        self._supervise(Member(name=command.name, start=partial(ManagedProcess, command)))

    def _supervise(self, member: Member) -> None:
        self._members[member.name] = member
        self._group.add(member)

    def _program(self, name: str, command: str, **settings: str) -> Command:
        """Return the `intraslice` command as a process with a data directory of its own."""
        place = name.replace(" ", "-")
        data = {"INTRASLICE_DATA_DIR": str(self.directory / place)}
        return Command(
            name=name,
            # -P keeps the working directory from shadowing a package.
            arguments=[sys.executable, "-P", "-m", "app.cli.main", command],
            log=self.directory / "logs" / f"{place}.log",
            cwd=self.directory,
            environment=self.environment | data | settings,
            guarded=True,
        )

    def _nginx_command(self, program: str) -> Command:
        directory = self.directory / "nginx"
        directory.mkdir(exist_ok=True)
        configuration = NGINX_CONFIGURATION.format(
            # Another user could not enter this directory.
            user="user root;" if os.geteuid() == 0 else "",
            directory=directory,
            example=_nginx_example(self._nginx_ports, self._api_ports),
        )
        (directory / "nginx.conf").write_text(configuration, encoding="utf-8")
        options = ["-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf")]
        return Command(
            name=NGINX,
            arguments=[program, *options],
            log=self.directory / "logs" / "nginx.log",
            cwd=directory,
            guarded=True,  # nginx's own workers survive their killed master and hold the port
        )

    def _wait_until_ready(self) -> None:
        addresses = {self.url, *(f"http://127.0.0.1:{port}" for port in self._api_ports)}
        deadline = time.monotonic() + _READY_SECONDS
        with httpx.Client(timeout=5.0, trust_env=False) as client:
            while not all(is_ready(client, address) for address in addresses):
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"the deployment is not ready after {_READY_SECONDS:g} s;"
                        f" see {self.directory / 'logs'}"
                    )
                self._group.tend()
                time.sleep(_POLL_SECONDS)

    def _processes(self, name: str) -> Iterator[psutil.Process]:
        """Yield the program of a member, without the guard that ends its descendants.

        A server's program is yielded before it is ready, too.
        """
        server = self._servers.get(name)
        process = self._members[name].process if server is None else server.process
        if process is None:
            return
        try:
            root = psutil.Process(process.pid)
            programs = root.children() if process.command.guarded else [root]
            yield from (program for program in programs if not _is_launcher(program))
        except psutil.NoSuchProcess:
            return

    def _children(self) -> Iterator[psutil.Process]:
        for process in psutil.Process().children(recursive=True):
            try:
                if "workers.child" in process.cmdline():
                    yield process
            except psutil.NoSuchProcess:
                continue


def _nginx_example(nginx_ports: Sequence[int], api_ports: Sequence[int]) -> str:
    """Return the example of the documentation, on ports of this machine and without TLS."""
    lines = _EXAMPLE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if "ssl_certificate" not in line)
    for line, replacement in {
        "listen 443 ssl http2;": f"listen 127.0.0.1:{nginx_ports[0]};",
        "listen 80;": f"listen 127.0.0.1:{nginx_ports[1]};",
        "server 127.0.0.1:8000 ": f"server 127.0.0.1:{api_ports[0]} ",
        "server 127.0.0.1:8001 ": f"server 127.0.0.1:{api_ports[1]} ",
    }.items():
        if text.count(line) != 1:
            raise EmbeddedError(f"{_EXAMPLE} has no line {line!r}, or several: adapt {__file__}")
        text = text.replace(line, replacement)
    return text


def is_ready(client: httpx.Client, url: str) -> bool:
    """Return whether database, broker and store answer, by /readyz."""
    try:
        return client.get(f"{url}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _is_launcher(process: psutil.Process) -> bool:
    return any("launch.py" in word for word in process.cmdline())


def _kill(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
