"""Wait until the schema is migrated and database, broker and store answer, as /readyz checks it.

The init container of workers and scheduler.
"""

from __future__ import annotations

import sys
import time

from app.services.health import HealthProbe
from app.services.resources import open_resources
from app.settings import get_settings

PAUSE_SECONDS = 1.0


def main() -> None:
    """Print what is missing, at every change, until nothing is."""
    probe = HealthProbe(open_resources(get_settings()))
    reported: list[str] = []
    while problems := [
        f"{check.name}: {check.problem}" for check in probe.check_all() if check.problem
    ]:
        if problems != reported:
            print(*problems, sep="\n", file=sys.stderr, flush=True)
            reported = problems
        time.sleep(PAUSE_SECONDS)
    probe.close()


if __name__ == "__main__":
    main()
