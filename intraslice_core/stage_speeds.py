"""Durations of earlier runs' stages, by class of machines, for the remaining time of later ones.

The cost model (`cost_model.stage_seconds`) knows the proportions of the work, but not how fast a
machine does each kind of it. A worker keeps what its runs have shown in a file.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from intraslice_core.cost_model.past_runs import NEWEST_RUNS, PastRun, predict_duration
from intraslice_core.progress import Stage

_CONTENT: TypeAdapter[dict[str, list[PastRun]]] = TypeAdapter(dict[str, list[PastRun]])
_ANY_METHOD = ""
"""Method of all runs of the file, whose machines are classes of one method each."""


@dataclass(frozen=True, kw_only=True)
class StageSpeeds:
    """File of finished runs on classes of machines; it may be removed at any time."""

    file: Path

    def read(self, machine: str) -> list[PastRun]:
        """Return the runs on a class of machines, newest first; empty without any.

        An unreadable file counts as an empty one: it only improves an estimate.
        """
        return self._read_all().get(machine, [])

    def record(
        self, machine: str, modelled: Mapping[Stage, float], measured: Mapping[Stage, float]
    ) -> None:
        """Add a finished run; the oldest beyond those of a fit are removed.

        Args:
            machine: class of machines.
            modelled: seconds of each stage by the cost model.
            measured: seconds that each stage took; those without modelled seconds are left out.
        """
        every = self._read_all()
        seconds = {stage: measured[stage] for stage in modelled if stage in measured}
        work = {stage: modelled[stage] for stage in seconds}
        run = PastRun(method=_ANY_METHOD, work=work, seconds=seconds)
        every[machine] = [run, *every.get(machine, [])][:NEWEST_RUNS]
        with contextlib.suppress(OSError):  # a full disk must not fail a finished run
            self._replace(_CONTENT.dump_json(every, indent=1))

    def _read_all(self) -> dict[str, list[PastRun]]:
        try:
            return _CONTENT.validate_json(self.file.read_bytes())
        except (OSError, ValueError):
            return {}

    def _replace(self, content: bytes) -> None:
        """Replace the file at once, because several processes may read and write it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.file.parent, prefix=self.file.name)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        Path(name).replace(self.file)


def expected_seconds(
    modelled: Mapping[Stage, float], runs: Sequence[PastRun]
) -> dict[Stage, float]:
    """Return the expected seconds of each stage, from the cost model and earlier runs.

    Args:
        modelled: seconds of each stage by the cost model.
        runs: on the same class of machines, newest first; without any the model's seconds hold.
    """
    if not runs:
        return dict(modelled)
    return dict(predict_duration(runs, _ANY_METHOD, modelled).stages)
