"""Speeds of earlier runs, by stage and class of machines, for the remaining time of later ones.

The cost model (`cost_model.stage_seconds`) knows the proportions of the work, but not how fast a
machine does each kind of it. A worker keeps the ratios of measured and modelled seconds in a file.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveFloat, TypeAdapter

from intraslice_core.progress import Stage

_SHORTEST_SECONDS = 0.05
"""Duration of a stage below which its speed is noise."""
_NEWEST_WEIGHT = 0.5
"""Weight of the newest run in the ratio that is kept."""

_CONTENT: TypeAdapter[dict[str, dict[Stage, float]]] = TypeAdapter(
    dict[str, dict[Stage, PositiveFloat]]
)

Slowness = Mapping[Stage, float]
"""Measured seconds of each stage per modelled second."""


@dataclass(frozen=True, kw_only=True)
class StageSpeeds:
    """File of measured ratios by class of machines; it may be removed at any time."""

    file: Path

    def read(self, machine: str) -> dict[Stage, float]:
        """Return the ratios measured on a class of machines; empty without any.

        An unreadable file counts as an empty one: it only improves an estimate.
        """
        return self._read_all().get(machine, {})

    def record(
        self, machine: str, modelled: Mapping[Stage, float], measured: Mapping[Stage, float]
    ) -> None:
        """Add the stages of a finished run, averaged with those of earlier runs.

        Args:
            machine: class of machines.
            modelled: seconds of each stage by the cost model.
            measured: seconds that each stage took; shorter ones than 50 ms are left out.
        """
        every = self._read_all()
        ratios = every.setdefault(machine, {})
        for stage, seconds in measured.items():
            if seconds >= _SHORTEST_SECONDS and modelled.get(stage, 0.0) > 0.0:
                newest = seconds / modelled[stage]
                earlier = ratios.get(stage, newest)
                ratios[stage] = earlier + _NEWEST_WEIGHT * (newest - earlier)
        with contextlib.suppress(OSError):  # a full disk must not fail a finished run
            self._replace(_CONTENT.dump_json(every, indent=1))

    def _read_all(self) -> dict[str, dict[Stage, float]]:
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


def expected_seconds(modelled: Mapping[Stage, float], slowness: Slowness) -> dict[Stage, float]:
    """Return the expected seconds of each stage, from the cost model and earlier runs.

    Stages that no earlier run has measured are as slow as the median of the others.
    """
    typical = statistics.median(slowness.values()) if slowness else 1.0
    return {stage: seconds * slowness.get(stage, typical) for stage, seconds in modelled.items()}
