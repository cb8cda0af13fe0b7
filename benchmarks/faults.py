"""Survival of kill -9, pauses and maintenance: jobs on a tiny model in a production deployment.

    python benchmarks/faults.py [--rounds 60] [--kinds kill,pause,maintenance] [--seed 0]
        [--work-dir DIR] [--patience 600]

Starts the group of `deployment.py`: nginx, two APIs, two workers, a scheduler, PostgreSQL, Valkey
and an S3 server, each of which is restarted when it dies. Clients go through nginx; without nginx
they go to the first API, and the results do not list it. Each round submits a job. The kinds take
turns:

* kill: one to three processes are killed with SIGKILL at random times, every fourth of them while
  the job publishes its files.
* pause: the job is paused and resumed one to three times, also in immediate succession and with
  repeated requests, while up to two processes are killed.
* maintenance: all tasks of the scheduler run in a tight loop in one more process, which removes
  orphans as early as the settings allow, while up to two processes are killed.

A job is lost if it does not succeed. Attempts are not limited here, because a job that exceeds its
attempts fails on purpose. Its files are downloaded and compared with those of an undisturbed run,
except for the files with times and names. At the end, every published file must be in the bucket.
Recovery is measured in rounds of kind kill, from a kill until /readyz reports success and the job
has made progress. The last line is JSON: {"rounds": …, "submitted": …, "lost": 0,
"published_twice": 0, "bytes_differ": 0, "missing_objects": 0, "orphaned_objects": …,
"recovery_p95_s": …, "kills": {TARGET: …}, "pauses": …, "maintenance_passes": …,
"maintenance_crashes": 0}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployment import NGINX, Deployment
from deployment_client import ENDS, POLL_SECONDS, Bucket, Service
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.services.resources import open_resources
from app.settings import Settings
from workers.periodic_tasks import DEPLOYMENT_TASKS

KINDS = ("kill", "pause", "maintenance")
RATIOS = (0.2, 0.4)
SETTINGS = {
    "LEASE_SECONDS": "3",
    "HEARTBEAT_SECONDS": "0.5",
    "MAINTENANCE_SECONDS": "0.5",
    "MAX_ATTEMPTS": "1000",
    "RESUME_STATE_SECONDS": "0.5",
    "REQUESTS_PER_SECOND": "1000",
    "REQUESTS_BURST": "1000",
}
PUBLICATION = math.inf
"""Time of a kill that waits until the job publishes its files."""
_STAY_SECONDS = 0.3
"""Time for which a paused job is watched: no worker may take it."""
_LOOP_END_SECONDS = 240.0
"""Longest wait for the end of the maintenance loop, which may be retrying a request."""


@dataclass(kw_only=True)
class Tally:
    """Counts over all rounds."""

    submitted: int = 0
    lost: list[str] = field(default_factory=list)
    published_twice: list[str] = field(default_factory=list)
    bytes_differ: list[str] = field(default_factory=list)
    missing_objects: list[str] = field(default_factory=list)
    orphaned_objects: list[str] = field(default_factory=list)
    resumed: int = 0
    pauses: int = 0
    maintenance_passes: int = 0
    maintenance_crashes: int = 0
    kills: dict[str, int]
    recoveries: dict[str, list[float]]

    @property
    def all_recoveries(self) -> list[float]:
        """Recovery times of all kills in seconds, ascending."""
        return sorted(second for seconds in self.recoveries.values() for second in seconds)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Disturbances of a round's job."""

    number: int
    kind: str
    ratio: float
    kills: list[tuple[float, str]]
    """Seconds since the start of the round, or `PUBLICATION`, and role of each kill."""
    pauses: list[tuple[float, bool]]
    """Seconds from the last resumption to each pause, and whether its requests are repeated."""


class Planner:
    """Draws the rounds: the same seed, kinds and targets give the same rounds."""

    def __init__(self, seed: int, kinds: Sequence[str], targets: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._kinds = kinds
        self._targets = targets
        self._deck: list[str] = []

    def plan(self, number: int, seconds: float) -> Plan:
        """Draw a round; kills and pauses fall within `seconds`, the time of an undisturbed job."""
        kind = self._kinds[number % len(self._kinds)]
        kills = self._random.randint(*((1, 3) if kind == "kill" else (0, 2)))
        pauses = self._random.randint(1, 3) if kind == "pause" else 0
        return Plan(
            number=number,
            kind=kind,
            ratio=self._random.choice(RATIOS),
            kills=sorted((self._moment(seconds), self._next_target()) for _ in range(kills)),
            pauses=[self._pause(seconds) for _ in range(pauses)],
        )

    def _moment(self, seconds: float) -> float:
        moment = self._random.uniform(0.0, seconds)
        return moment if self._random.random() > 1 / 4 else PUBLICATION

    def _pause(self, seconds: float) -> tuple[float, bool]:
        """Draw a pause; every third follows the resumption at once, every second is repeated."""
        wait = self._random.uniform(0.0, seconds) if self._random.random() > 1 / 3 else 0.0
        return wait, self._random.random() < 1 / 2

    def _next_target(self) -> str:
        """Draw the next role; all are drawn equally often."""
        if not self._deck:
            self._deck = list(self._targets)
            self._random.shuffle(self._deck)
        return self._deck.pop()


class Rounds:
    """The measurement against a running deployment."""

    def __init__(self, deployment: Deployment, service: Service, model: Path, seed: int) -> None:
        targets = deployment.targets
        self.tally = Tally(
            kills=dict.fromkeys(targets, 0), recoveries={target: [] for target in targets}
        )
        self._deployment = deployment
        self._service = service
        self._model = model
        self._seed = seed
        self._job_ids: list[str] = []
        self._expected: dict[float, dict[str, str]] = {}
        self.undisturbed_seconds = 0.0
        """Time of an undisturbed job."""
        self._resources = open_resources(_own_settings(deployment))
        self._bucket = Bucket(self._resources, service.patience_seconds)

    def begin(self) -> None:
        """Run a job undisturbed."""
        started = time.monotonic()
        self._expect(RATIOS[0])
        self.undisturbed_seconds = time.monotonic() - started

    def run(self, plan: Plan) -> None:
        """Run one job, disturb it, and check its result."""
        self._expect(plan.ratio)
        with self._disturbances(plan) as disturbances:
            job_id = self._submit(plan)
            self.tally.submitted += 1
            self._job_ids.append(job_id)
            # A job may have ended before its last kill.
            for disturbance in disturbances:
                disturbance()
            succeeded = self._service.succeeds(job_id)
        if succeeded:
            self._wait_until(self._service.is_ready)
            self._check(job_id, plan)
        else:
            self.tally.lost.append(f"{job_id} of {plan}: {self._service.job(job_id)}")

    def end(self) -> None:
        """Run maintenance once more and compare the bucket with the database."""
        self._wait_until(self._service.is_ready)
        for task in DEPLOYMENT_TASKS:
            task(self._resources)
        reported = [
            f"of {job_id}, by its artifacts_missing"
            for job_id in self._job_ids
            if self._service.job(job_id)["artifacts_missing"]
        ]
        self.tally.missing_objects = self._bucket.missing_objects(self._job_ids) + reported
        self.tally.orphaned_objects = self._bucket.orphaned_objects(self._job_ids)
        self._resources.close()

    def _expect(self, ratio: float) -> None:
        """Record the files of an undisturbed job at this ratio."""
        if ratio in self._expected:
            return
        job_id = self._service.submit(self._model, ratio, f"undisturbed-{ratio}")
        if not self._service.succeeds(job_id):
            raise SystemExit(f"an undisturbed job did not succeed: {self._service.job(job_id)}")
        self._job_ids.append(job_id)
        self._expected[ratio] = self._service.digests(job_id)

    def _submit(self, plan: Plan) -> str:
        """Submit the round's job; it is the same job at every call."""
        key = f"round-{self._seed}-{plan.number}"
        return self._service.submit(self._model, plan.ratio, key)

    @contextmanager
    def _disturbances(self, plan: Plan) -> Iterator[list[Callable[[], Any]]]:
        """Start what the plan wants; yield functions that wait for its end and raise its errors."""
        with ExitStack() as stack:
            if plan.kind == "maintenance":
                stack.enter_context(self._maintenance())
            # Submit while processes are killed, because a request may be interrupted too.
            pool = stack.enter_context(ThreadPoolExecutor(2))
            running = [pool.submit(self._kill, plan)]
            if plan.pauses:
                running.append(pool.submit(self._pause, plan))
            yield [future.result for future in running]

    def _kill(self, plan: Plan) -> None:
        started = time.monotonic()
        for moment, target in plan.kills:
            if moment == PUBLICATION:
                self._wait_until(self._is_publishing(self._submit(plan)))
            else:
                time.sleep(max(0.0, started + moment - time.monotonic()))
            killed = time.monotonic()
            if not self._deployment.kill(target):
                continue
            self.tally.kills[target] += 1
            if plan.kind == "kill":
                job_id = self._submit(plan)
                steps = len(self._service.events(job_id))
                self._wait_until(self._has_recovered(job_id, steps))
                self.tally.recoveries[target].append(time.monotonic() - killed)

    def _is_publishing(self, job_id: str) -> Callable[[], bool]:
        """Return a check for the job's last stage, or its end."""

        def check() -> bool:
            job = self._service.job(job_id)
            return job["stage"] == "publish" or job["state"] in ENDS

        return check

    def _has_recovered(self, job_id: str, steps: int) -> Callable[[], bool]:
        """Return a check for readiness, and for progress after the job's first `steps` events."""

        def check() -> bool:
            if not self._service.is_ready():
                return False
            events = [event["type"] for event in self._service.events(job_id)]
            # Being queued again is no progress.
            return events[-1] in ENDS or "progress" in events[steps:]

        return check

    def _pause(self, plan: Plan) -> None:
        job_id = self._submit(plan)
        for wait, is_repeated in plan.pauses:
            time.sleep(wait)
            if not self._pause_once(job_id, 2 if is_repeated else 1):
                return

    def _pause_once(self, job_id: str, requests: int) -> bool:
        """Pause and resume the job; return False if it ended before that."""
        for _ in range(requests):
            # 409 after the job's end.
            self._service.send("POST", f"/v1/jobs/{job_id}/pause")
        if self._service.wait_for(job_id, ("paused", *ENDS)) != "paused":
            return False
        self.tally.pauses += 1
        time.sleep(_STAY_SECONDS)
        state = self._service.job(job_id)["state"]
        if state != "paused":
            raise RuntimeError(f"{job_id} is {state} although it was paused")
        for _ in range(requests):
            self._service.send("POST", f"/v1/jobs/{job_id}/resume").raise_for_status()
        return True

    @contextmanager
    def _maintenance(self) -> Iterator[None]:
        """Run `maintenance_loop.py` in one more process."""
        log = self._deployment.directory / "logs" / "maintenance-loop.log"
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("maintenance_loop.py"))],
                env=self._deployment.environment | _data_directory(self._deployment, "loop"),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        try:
            yield
            process.communicate(timeout=_LOOP_END_SECONDS)
        finally:
            process.kill()
            process.wait()
        counts = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        self.tally.maintenance_passes += counts["passes"]
        self.tally.maintenance_crashes += counts["crashed"]

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._service.patience_seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _check(self, job_id: str, plan: Plan) -> None:
        events = [event["type"] for event in self._service.events(job_id)]
        if events.count("succeeded") != 1 or self._bucket.publications(job_id) != 1:
            self.tally.published_twice.append(f"{job_id} of {plan}")
        if self._service.digests(job_id) != self._expected[plan.ratio]:
            self.tally.bytes_differ.append(f"{job_id} of {plan}")
        report = self._service.request("GET", f"/v1/jobs/{job_id}/report")
        self.tally.resumed += bool(report["resumed_layers"])


def _data_directory(deployment: Deployment, name: str) -> dict[str, str]:
    return {"INTRASLICE_DATA_DIR": str(deployment.directory / name)}


def _own_settings(deployment: Deployment) -> Settings:
    """Let this process read the deployment's database and bucket."""
    os.environ |= deployment.environment | _data_directory(deployment, "benchmark")
    return Settings()


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values; 0 if there are none."""
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def print_results(tally: Tally, rounds: int, console: Console) -> None:
    """Print a table, the failed jobs, and the line of JSON."""
    table = Table("killed", "times", "recovery p50 s", "p95 s", title="kill -9")
    for target, kills in tally.kills.items():
        seconds = sorted(tally.recoveries[target])
        row = (quantile(seconds, 0.5), quantile(seconds, 0.95))
        table.add_row(target, str(kills), *(f"{value:.2f}" for value in row))
    everything = tally.all_recoveries
    median = statistics.median(everything) if everything else 0.0
    p95 = quantile(everything, 0.95)
    table.add_row("all", str(sum(tally.kills.values())), f"{median:.2f}", f"{p95:.2f}")
    console.print(table)
    console.print(
        f"{tally.submitted} jobs submitted, {len(tally.lost)} lost, "
        f"{len(tally.published_twice)} published twice, "
        f"{len(tally.bytes_differ)} with other bytes; "
        f"{tally.resumed} resumed from finished layers\n"
        f"{tally.pauses} pauses; {tally.maintenance_passes} passes of maintenance beside live "
        f"jobs, {tally.maintenance_crashes} crashes of its tasks\n"
        f"{len(tally.missing_objects)} published objects missing in the bucket, "
        f"{len(tally.orphaned_objects)} orphans left in it"
    )
    lists = ("lost", "published_twice", "bytes_differ", "missing_objects", "orphaned_objects")
    for name in lists:
        for entry in getattr(tally, name):
            console.print(f"{name}: {entry}", markup=False)
    counts = {name: len(getattr(tally, name)) for name in lists}
    print(
        json.dumps(
            {"rounds": rounds, "submitted": tally.submitted}
            | counts
            | {
                "recovery_p95_s": round(p95, 2),
                "kills": tally.kills,
                "pauses": tally.pauses,
                "maintenance_passes": tally.maintenance_passes,
                "maintenance_crashes": tally.maintenance_crashes,
            }
        )
    )


def tiny_model(directory: Path) -> Path:
    """Write a tiny model of six layers, so that a job can be killed between two of them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.intraslice_core.tiny_models import tiny_llama

    return tiny_llama(directory, num_hidden_layers=6, hidden_size=96, intermediate_size=256)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="Number of jobs (default 60).")
    parser.add_argument(
        "--kinds",
        type=_kinds,
        default=KINDS,
        help="Kinds of rounds, in turn (default kill,pause,maintenance).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Random seed (default 0).")
    parser.add_argument("--work-dir", type=Path, help="Directory that is kept, with the logs.")
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        help="Time after which an unfinished job is lost (seconds, default 600).",
    )
    return parser.parse_args()


def _kinds(value: str) -> tuple[str, ...]:
    kinds = tuple(value.split(","))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; choose from {', '.join(KINDS)}")
    return kinds


def run_rounds(rounds: Rounds, planner: Planner, number: int, console: Console) -> None:
    """Run all rounds with a progress bar."""
    with Progress(console=console, transient=True) as progress:
        rounds.begin()
        for index in progress.track(range(number), description="rounds"):
            rounds.run(planner.plan(index, rounds.undisturbed_seconds))
        rounds.end()


def main() -> None:
    """Measure, print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="intraslice-faults-") as scratch:
        folder = (arguments.work_dir or Path(scratch)).resolve()
        model = tiny_model(folder / "models" / "tiny")
        settings = {f"INTRASLICE_{name}": value for name, value in SETTINGS.items()}
        settings["INTRASLICE_MODEL_ROOTS"] = json.dumps([str(model.parent)])
        done = threading.Event()
        with Deployment(folder / "data", settings) as deployment, ThreadPoolExecutor(1) as pool:
            if NGINX not in deployment.targets:
                console.print("nginx is not installed: clients go to the first API")
            deployment.start()
            service = Service(deployment.url, deployment.api_key, arguments.patience)
            rounds = Rounds(deployment, service, model, arguments.seed)
            planner = Planner(arguments.seed, arguments.kinds, deployment.targets)
            work = pool.submit(run_rounds, rounds, planner, arguments.rounds, console)
            work.add_done_callback(lambda _work: done.set())
            # In this thread, because members end with the thread that started them.
            deployment.run(done.is_set)
            work.result()
        print_results(rounds.tally, arguments.rounds, console)


if __name__ == "__main__":
    main()
