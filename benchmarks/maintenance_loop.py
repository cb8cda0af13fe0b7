"""Maintenance in a tight loop, which `faults.py` runs against a live job.

Runs every task of the scheduler again and again until its standard input ends, with orphans removed
as early as the settings allow. Then prints one line of JSON: {"passes": …, "unavailable": …,
"crashed": …}. A task is unavailable while a server that it needs is down, which is no fault.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from annotated_types import Ge, Gt

from app.domain.errors import ServiceError
from app.services.resources import Resources, open_resources
from app.settings import Settings
from workers.periodic_tasks import DEPLOYMENT_TASKS

_EARLY = ("orphan_", "artifact_check_")
"""Prefixes of the settings whose lowest values make maintenance most eager."""

_PAUSE_SECONDS = 0.05
"""Pause between two passes, so that the job gets some of the processor."""


def eager_settings() -> dict[str, str]:
    """Return the environment in which orphans are looked for, and removed, as early as possible."""
    return {
        f"INTRASLICE_{name.upper()}": str(bound)
        for name, field in Settings.model_fields.items()
        if name.startswith(_EARLY)
        for bound in _lower_bounds(field.metadata)
    }


def _lower_bounds(constraints: Iterable[Any]) -> Iterator[float]:
    for constraint in constraints:
        if isinstance(constraint, Ge):
            yield float(str(constraint.ge))
        elif isinstance(constraint, Gt):
            yield float(str(constraint.gt)) + 0.001


def run_until_input_ends(resources: Resources) -> dict[str, int]:
    """Run all tasks in a loop and return how often they ran and failed."""
    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    counts = {"passes": 0, "unavailable": 0, "crashed": 0}
    while not stop.is_set():
        for task in DEPLOYMENT_TASKS:
            try:
                task(resources)
            except ServiceError:
                counts["unavailable"] += 1
            except Exception:
                traceback.print_exc()
                counts["crashed"] += 1
        counts["passes"] += 1
        stop.wait(_PAUSE_SECONDS)
    return counts


def main() -> None:
    """Run maintenance until the standard input ends."""
    os.environ |= eager_settings()
    resources = open_resources(Settings())
    try:
        print(json.dumps(run_until_input_ends(resources)), flush=True)
    finally:
        resources.close()


if __name__ == "__main__":
    main()
