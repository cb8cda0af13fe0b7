"""CPU time that commands and the API take to start.

    python benchmarks/start.py [--against REVISION] [--repeats N]

Every command runs in a fresh process and against a service in another process, so that only its
own CPU time counts; the smallest of the repeats is shown, because load only adds to it. `list`
asks a small server that answers with an empty page. The API's time is that of its process from its
start to its first answer on `/livez`, with the database and the broker of `intraslice up`. With
`--against` a second table compares with an older revision, which is checked out beside this one.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
from empty_service import empty_service
from revisions import REPOSITORY, checked_out, environment_of

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.valkey import EmbeddedValkey

_COMMANDS = {
    "import intraslice_client": ("-c", "from intraslice_client import Client"),
    "intraslice --help": ("-m", "app.cli.main", "--help"),
    "intraslice list --help": ("-m", "app.cli.main", "list", "--help"),
    "intraslice list": ("-m", "app.cli.main", "list"),
    "intraslice webhooks list": ("-m", "app.cli.main", "webhooks", "list"),
    "intraslice serve --help": ("-m", "app.cli.main", "serve", "--help"),
}
_API = "intraslice serve, to /livez"
_START_SECONDS = 120.0
_TARGETS = {"intraslice list": 0.4, "intraslice webhooks list": 0.4, _API: 1.5}
"""Largest CPU seconds of issue 22."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU and wall-clock seconds of a start."""

    cpu: float
    wall: float


def command_cost(tree: Path, arguments: tuple[str, ...], url: str, repeats: int) -> Cost:
    """Return the smallest cost of a command, after one run that writes the bytecode cache."""
    environment = environment_of(tree) | {"INTRASLICE_URL": url}
    costs = []
    for _ in range(1 + repeats):
        before, started = _children_cpu(), time.perf_counter()
        subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=tree,
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        costs.append(Cost(cpu=_children_cpu() - before, wall=time.perf_counter() - started))
    return min(costs[1:], key=lambda cost: cost.cpu)


def api_cost(tree: Path, repeats: int) -> Cost:
    """Return the smallest cost of the API's process up to its first answer."""
    with tempfile.TemporaryDirectory(prefix="intraslice-start-") as directory:
        data_dir = Path(directory)
        postgres, valkey = EmbeddedPostgres(data_dir / "postgres"), EmbeddedValkey(data_dir / "kv")
        with postgres, valkey:
            environment = environment_of(tree) | {
                "INTRASLICE_AUTH": "off",
                "INTRASLICE_BROKER_URL": valkey.url,
                "INTRASLICE_DATABASE_URL": postgres.url,
                "INTRASLICE_DATA_DIR": directory,
                "INTRASLICE_PORT": str(_free_port()),
            }
            migrate = [sys.executable, "-P", "-m", "app.cli.main", "migrate"]
            subprocess.run(migrate, cwd=tree, env=environment, capture_output=True, check=True)
            costs = [_started_api(tree, environment) for _ in range(1 + repeats)]
    return min(costs[1:], key=lambda cost: cost.cpu)


def _started_api(tree: Path, environment: dict[str, str]) -> Cost:
    """Start the API, wait for its first answer, stop it, and return what the start cost."""
    url = f"http://127.0.0.1:{environment['INTRASLICE_PORT']}/livez"
    started = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, "-P", "-m", "app.cli.main", "serve"],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _answers(url):
            if process.poll() is not None or time.perf_counter() - started > _START_SECONDS:
                raise RuntimeError(f"`intraslice serve` of {tree} did not answer on {url}")
            time.sleep(0.02)
        times = process.cpu_times()
        return Cost(cpu=times.user + times.system, wall=time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(tree: Path, repeats: int) -> dict[str, Cost]:
    """Return the cost of every start in one tree."""
    with empty_service() as url:
        costs = {
            name: command_cost(tree, arguments, url, repeats)
            for name, arguments in _COMMANDS.items()
        }
    return costs | {_API: api_cost(tree, repeats)}


def print_costs(after: dict[str, Cost], before: dict[str, Cost] | None) -> None:
    """Print one row per start; with `before` also its cost and the ratio."""
    print(f"{'start':<28}{'CPU s':>8}{'wall s':>8}{'before':>8}{'ratio':>7}{'target':>8}")
    for name, cost in after.items():
        row = f"{name:<28}{cost.cpu:>8.2f}{cost.wall:>8.2f}"
        old = before and before[name]
        row += f"{old.cpu:>8.2f}{cost.cpu / old.cpu:>7.2f}" if old else f"{'':>15}"
        print(row + (f"{_TARGETS[name]:>8.1f}" if name in _TARGETS else ""))


def main() -> None:
    """Measure, print the table and a last line of JSON."""
    parser = argparse.ArgumentParser(description="CPU time that commands and the API need to start")
    parser.add_argument("--against", metavar="REVISION", help="revision to compare with")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each start; default 5")
    options = parser.parse_args()
    before = None
    if options.against is not None:
        with checked_out(options.against) as tree:
            before = measure(tree, options.repeats)
    after = measure(REPOSITORY, options.repeats)
    print_costs(after, before)
    result = {
        "cpu_seconds": {name: round(cost.cpu, 3) for name, cost in after.items()},
        "wall_seconds": {name: round(cost.wall, 3) for name, cost in after.items()},
        "targets": _TARGETS,
    }
    if before is not None:
        result["ratio"] = {name: round(after[name].cpu / before[name].cpu, 3) for name in after}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
