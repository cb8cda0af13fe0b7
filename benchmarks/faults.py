"""Survival of kill -9: jobs on a tiny model while the service's processes are killed.

    python benchmarks/faults.py [--rounds 50] [--seed 0] [--work-dir DIR]

Starts the group of `intraslice up`: PostgreSQL, Valkey, API and worker, each of which its
supervisor restarts when it dies. A round submits a job and kills one to three of child, worker,
API, Valkey and PostgreSQL with SIGKILL at random times. A job is lost if it does not succeed.
Attempts are not limited here, because a job that exceeds its attempts fails on purpose. Its files
are downloaded and compared with those of an undisturbed run, except for the files with times and
names. Recovery lasts from a kill until /readyz reports success and the job has made progress. The
last line is JSON: {"rounds": …, "submitted": …, "lost": 0, "published_twice": 0, "bytes_differ": 0,
"recovery_p95_s": …}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.embedded.stack import Stack, StackOptions

TARGETS = ("child", "worker", "API", "Valkey", "PostgreSQL")
RATIOS = (0.2, 0.4)
TIMED = frozenset({"manifest.json", "manifest.json.sig", "intraslice_report.json", "README.md"})
"""Files that contain the seconds of a run, or the name of its job."""
SETTINGS = {
    "LEASE_SECONDS": "3",
    "HEARTBEAT_SECONDS": "0.5",
    "MAINTENANCE_SECONDS": "0.5",
    "MAX_ATTEMPTS": "1000",
    "RESUME_STATE_SECONDS": "0.5",
    "REQUESTS_PER_SECOND": "1000",
    "REQUESTS_BURST": "1000",
}
_JOB_SECONDS = 300.0
"""Time after which a job counts as lost."""
_POLL_SECONDS = 0.05
_ENDS = ("succeeded", "failed", "cancelled")


@dataclass(kw_only=True)
class Tally:
    """Counts over all rounds."""

    submitted: int = 0
    lost: list[str] = field(default_factory=list)
    published_twice: list[str] = field(default_factory=list)
    bytes_differ: list[str] = field(default_factory=list)
    resumed: int = 0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TARGETS, 0))
    recoveries: dict[str, list[float]] = field(default_factory=lambda: {t: [] for t in TARGETS})

    @property
    def all_recoveries(self) -> list[float]:
        """Recovery times of all kills in seconds, ascending."""
        return sorted(second for seconds in self.recoveries.values() for second in seconds)


class Service:
    """Client of the API that retries while the API is unreachable."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10.0, trust_env=False)

    def request(self, method: str, path: str, **more: Any) -> Any:
        """Return the JSON answer, retrying on connection errors and 5xx."""
        deadline = time.monotonic() + _JOB_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, **more)
                if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    return answer.raise_for_status().json()
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"{method} {path}: no answer")
            time.sleep(_POLL_SECONDS)

    def submit(self, model: Path, ratio: float, key: str) -> str:
        """Submit a job; the idempotency key makes one job of all retries."""
        calibration = {"samples": 128, "sequence_length": 64}
        compression = {"ratio": ratio, "calibration": calibration, "round_to": 2}
        body = {
            "model": {"source": "path", "ref": str(model)},
            "compression": compression,
            "evaluation": None,
        }
        job: dict[str, Any] = self.request(
            "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key}
        )
        return str(job["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job."""
        job: dict[str, Any] = self.request("GET", f"/v1/jobs/{job_id}")
        return job

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Return the job's events."""
        return list(
            self.request("GET", f"/v1/jobs/{job_id}/events", params={"limit": 1000})["data"]
        )

    def is_ready(self) -> bool:
        """Return whether database, broker and store answer, by /readyz."""
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def digests(self, job_id: str) -> dict[str, str]:
        """Download every artifact and return its SHA-256 by name."""
        files = self.request("GET", f"/v1/jobs/{job_id}/artifacts")["data"]
        digests = {}
        for file in files:
            content = self._http.get(file["url"]).raise_for_status().content
            digests[file["name"]] = hashlib.sha256(content).hexdigest()
            if digests[file["name"]] != file["sha256"]:
                digests[file["name"]] += " damaged"
        return {name: digest for name, digest in digests.items() if name not in TIMED}


class Killer:
    """Finds a process of the group by its role and kills it."""

    def __init__(self) -> None:
        self._self = psutil.Process()

    def kill(self, target: str) -> bool:
        """Kill a process of this role; return False if there is none."""
        for process in self._self.children(recursive=True):
            try:
                if _IS[target](process):
                    process.kill()
                    return True
            except psutil.NoSuchProcess:
                continue
        return False


def _runs(*words: str) -> Callable[[psutil.Process], bool]:
    def matches(process: psutil.Process) -> bool:
        line = process.cmdline()
        return not any("launch.py" in word for word in line) and all(w in line for w in words)

    return matches


def _is_postmaster(process: psutil.Process) -> bool:
    parent = process.parent()
    return process.name() == "postgres" and (parent is None or parent.name() != "postgres")


_IS: dict[str, Callable[[psutil.Process], bool]] = {
    "child": _runs("workers.child"),
    "worker": _runs("app.cli.main", "worker"),
    "API": _runs("app.cli.main", "serve"),
    "Valkey": lambda process: process.name().startswith("valkey"),
    "PostgreSQL": _is_postmaster,
}


class Rounds:
    """The measurement against a running service."""

    def __init__(self, service: Service, model: Path, store: Path, seed: int) -> None:
        self.tally = Tally()
        self._service = service
        self._model = model
        self._store = store
        self._random = random.Random(seed)
        self._seed = seed
        self._killer = Killer()
        self._deck: list[str] = []
        self._expected: dict[float, dict[str, str]] = {}
        self._undisturbed = 0.0

    def begin(self) -> None:
        """Run a job undisturbed; kills fall within the time that it takes."""
        started = time.monotonic()
        self._expect(RATIOS[0])
        self._undisturbed = time.monotonic() - started

    def _expect(self, ratio: float) -> None:
        """Record the files of an undisturbed job at this ratio."""
        if ratio in self._expected:
            return
        job_id = self._service.submit(self._model, ratio, f"undisturbed-{ratio}")
        if not self._succeeds(job_id):
            raise SystemExit(f"an undisturbed job did not succeed: {self._service.job(job_id)}")
        self._expected[ratio] = self._service.digests(job_id)

    def round(self, number: int) -> None:
        """Run one job, kill processes while it runs, and check its result."""
        ratio = self._random.choice(RATIOS)
        self._expect(ratio)
        key = f"round-{self._seed}-{number}"
        kills = sorted(
            (self._random.uniform(0.0, self._undisturbed), self._next_target())
            for _ in range(self._random.randint(1, 3))
        )
        # Submit while processes are killed, because a request may be interrupted too.
        killing = threading.Thread(target=self._kill, args=(key, ratio, kills))
        killing.start()
        job_id = self._service.submit(self._model, ratio, key)
        self.tally.submitted += 1
        done = self._succeeds(job_id)
        killing.join()
        if not done:
            self.tally.lost.append(job_id)
            return
        self._judge(job_id, ratio)

    def _next_target(self) -> str:
        """Draw the next role; all are drawn equally often."""
        if not self._deck:
            self._deck = list(TARGETS)
            self._random.shuffle(self._deck)
        return self._deck.pop()

    def _kill(self, key: str, ratio: float, kills: Sequence[tuple[float, str]]) -> None:
        started = time.monotonic()
        for moment, target in kills:
            time.sleep(max(0.0, started + moment - time.monotonic()))
            killed = time.monotonic()
            if not self._killer.kill(target):
                continue
            self.tally.kills[target] += 1
            # The same key: whichever of the two requests is first, there is one job.
            job_id = self._service.submit(self._model, ratio, key)
            steps = len(self._service.events(job_id))
            self._wait_until_recovered(job_id, steps)
            self.tally.recoveries[target].append(time.monotonic() - killed)

    def _wait_until_recovered(self, job_id: str, steps: int) -> None:
        deadline = time.monotonic() + _JOB_SECONDS
        while time.monotonic() < deadline:
            if self._service.is_ready():
                events = self._service.events(job_id)
                if events[-1]["type"] in _ENDS or _has_progress(events[steps:]):
                    return
            time.sleep(_POLL_SECONDS)

    def _succeeds(self, job_id: str) -> bool:
        deadline = time.monotonic() + _JOB_SECONDS
        while time.monotonic() < deadline:
            state = self._service.job(job_id)["state"]
            if state in _ENDS:
                return bool(state == "succeeded")
            time.sleep(_POLL_SECONDS)
        return False

    def _judge(self, job_id: str, ratio: float) -> None:
        events = [event["type"] for event in self._service.events(job_id)]
        manifests = list((self._store / "jobs" / job_id).rglob("manifest.json"))
        published = [file for file in manifests if self._is_published(job_id, file)]
        if events.count("succeeded") != 1 or len(published) != 1:
            self.tally.published_twice.append(job_id)
        if self._service.digests(job_id) != self._expected[ratio]:
            self.tally.bytes_differ.append(job_id)
        report = self._service.request("GET", f"/v1/jobs/{job_id}/report")
        self.tally.resumed += bool(report["resumed_layers"])

    def _is_published(self, job_id: str, manifest: Path) -> bool:
        """Return whether the manifest is the published one, not a left-over of a killed attempt."""
        files = self._service.request("GET", f"/v1/jobs/{job_id}/artifacts")["data"]
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        return any(file["name"] == "manifest.json" and file["sha256"] == digest for file in files)


def _has_progress(events: Sequence[dict[str, Any]]) -> bool:
    """Return whether work was done; being queued again does not count."""
    return any(event["type"] == "progress" for event in events)


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values; 0 if there are none."""
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def print_results(tally: Tally, rounds: int, console: Console) -> None:
    """Print a table, the failed jobs, and the line of JSON."""
    table = Table("killed", "times", "recovery p50 s", "p95 s", title="kill -9")
    for target in TARGETS:
        seconds = sorted(tally.recoveries[target])
        row = (quantile(seconds, 0.5), quantile(seconds, 0.95))
        table.add_row(target, str(tally.kills[target]), *(f"{value:.2f}" for value in row))
    everything = tally.all_recoveries
    median = statistics.median(everything) if everything else 0.0
    table.add_row("all", str(len(everything)), f"{median:.2f}", f"{quantile(everything, 0.95):.2f}")
    console.print(table)
    console.print(
        f"{tally.submitted} jobs submitted, {len(tally.lost)} lost, "
        f"{len(tally.published_twice)} published twice, "
        f"{len(tally.bytes_differ)} with other bytes; "
        f"{tally.resumed} went on from finished layers"
    )
    for name in ("lost", "published_twice", "bytes_differ"):
        for job_id in getattr(tally, name):
            console.print(f"{name}: {job_id}")
    print(
        json.dumps(
            {
                "rounds": rounds,
                "submitted": tally.submitted,
                "lost": len(tally.lost),
                "published_twice": len(tally.published_twice),
                "bytes_differ": len(tally.bytes_differ),
                "recovery_p95_s": round(quantile(everything, 0.95), 2),
            }
        )
    )


def tiny_model(directory: Path) -> Path:
    """Write a tiny model of six layers, so that a job can be killed between two of them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.intraslice_core.tiny_models import tiny_llama

    return tiny_llama(directory, num_hidden_layers=6, hidden_size=96, intermediate_size=256)


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, help="Directory that is kept, with the logs.")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="intraslice-faults-") as scratch:
        folder = (arguments.work_dir or Path(scratch)).resolve()
        model = tiny_model(folder / "models" / "tiny")
        os.environ |= {f"INTRASLICE_{name}": value for name, value in SETTINGS.items()}
        os.environ["INTRASLICE_MODEL_ROOTS"] = json.dumps([str(model.parent)])
        options = StackOptions(data_dir=folder / "data", host="127.0.0.1", port=0, auth="off")
        done = threading.Event()
        trouble: list[BaseException] = []

        def work() -> None:
            try:
                with Progress(console=console, transient=True) as progress:
                    rounds.begin()
                    for number in progress.track(range(arguments.rounds), description="rounds"):
                        rounds.round(number)
            except BaseException as error:
                trouble.append(error)
            finally:
                done.set()

        # Restart without limit, like systemd's Restart=always.
        with Stack(options, lambda _line: None, restarts=lambda _now, _crashes: 0.3) as stack:
            stack.start(done.is_set)
            rounds = Rounds(
                Service(stack.url), model, options.data_dir / "artifacts", arguments.seed
            )
            working = threading.Thread(target=work)
            working.start()
            # In this thread, because members end with the thread that started them.
            stack.run(done.is_set)
            working.join()
        if trouble:
            raise trouble[0]
        print_results(rounds.tally, arguments.rounds, console)


if __name__ == "__main__":
    main()
