"""Compressions of a tiny model by several methods: `compressions.py DENSE FOLDER`.

Two ranks write checkpoints by all methods, and three those of some, to `FOLDER/2` and `FOLDER/3`.
At last the first one of two cancels a compression while it measures, and two resume it.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.errors import IntraSliceError
from intraslice_core.hidden_states import HiddenStates
from intraslice_core.launcher import current_launch
from intraslice_core.pipeline import compress_model
from intraslice_core.ranks import ConnectedRanks
from intraslice_core.resume_state import ResumeState
from tests.intraslice_core.parallel.forked import run_in_ranks

SAMPLES = 13
"""Sequences: an odd number, so that the ranks' shares differ."""
LENGTH = 48
MODEL: dict[str, Any] = {"num_hidden_layers": 4, "initializer_range": 0.15}
MIXTURE = [{"source": "pydoc", "weight": 1.0}, {"source": "pycode", "weight": 1.0}]

_TRAINING = {"max_tokens": 4 * LENGTH}
CONFIGS: dict[str, dict[str, Any]] = {
    "intraslice_plus": {},
    "intraslice_plus_uniform": {"method": "intraslice_plus", "allocation": "uniform"},
    "intraslice": {"ratio": 0.4},
    "flap": {},
    "wanda_sp": {},
    "2ssp": {"ratio": 0.5},
    "transact": {},
    "modegpt": {},
    "shortgpt": {},
    "fusegpt": {},
    "slicegpt": {},
    "spp": {"mask_training": _TRAINING},
    "disp": {"mask_training": _TRAINING},
    "magnitude": {},
}
"""Settings by name, which is that of the method where it is not among them."""
COUNTED = "flap"
"""Compression in which objects with hidden states are counted."""
IN_THREE = ("intraslice_plus", "modegpt", "slicegpt")
"""Compressions by three ranks."""


def config(name: str) -> CompressionConfig:
    """Return the settings of a compression."""
    settings = {
        "method": name,
        "ratio": 0.3,
        "round_to": 2,
        "dtype": "float32",
        "batch_size": 3,
        "calibration": CalibrationConfig.model_validate(
            {"source": MIXTURE, "samples": SAMPLES, "sequence_length": LENGTH}
        ),
    }
    return CompressionConfig.model_validate(settings | CONFIGS[name])


@contextmanager
def counting_states(counts: list[int]) -> Iterator[None]:
    """Append the number of objects with hidden states whenever a rank waits for another one."""
    receive = ConnectedRanks.receive

    def counted(ranks: ConnectedRanks, owner: int) -> Any:
        counts.append(sum(type(item) is HiddenStates for item in gc.get_objects()))
        return receive(ranks, owner)

    with patch.object(ConnectedRanks, "receive", counted):
        yield


def compress_all(dense: Path, folder: Path, names: list[str]) -> None:
    """Write a checkpoint for each of the names."""
    for name in names:
        counts = list[int]()
        with counting_states(counts) if name == COUNTED else nullcontext():
            report = compress_model(str(dense), folder / name, config(name), verify=False)
        launch = current_launch()
        if launch is not None:  # every rank has the report
            (folder / f"{name}-{launch.rank}.json").write_text(report.model_dump_json())
            (folder / f"{name}-{launch.rank}-states.json").write_text(json.dumps(counts))


def cancel(dense: Path, folder: Path) -> None:
    """Write the code of the error with which each rank ends when the first one is cancelled.

    It is cancelled once each rank has measured a layer.
    """
    launch = current_launch()
    assert launch is not None
    state, rank = folder / "state", launch.rank
    try:
        compress_model(
            str(dense),
            folder / "cancelled",
            config("intraslice_plus"),
            resume_state=ResumeState(directory=state),
            verify=False,
            should_cancel=lambda: rank == 0 and bool([*state.glob("measured-*-00001.*")]),
        )
    except IntraSliceError as error:
        (folder / f"error-{rank}").write_text(error.code)


def resume(dense: Path, folder: Path) -> None:
    """Resume the compression that was cancelled, and write which layers had been measured."""
    state = folder / "state"
    if (launch := current_launch()) is not None and launch.rank == 0:
        names = sorted(file.name for file in state.glob("measured-*"))
        (folder / "measured").write_text("\n".join(names))
    compress_model(
        str(dense),
        folder / "resumed",
        config("intraslice_plus"),
        resume_state=ResumeState(directory=state),
        verify=False,
    )


def main(dense: Path, folder: Path) -> None:
    """Start the ranks, which leave their connections as they are at the end."""
    for ranks, names in ((2, [*CONFIGS]), (3, [*IN_THREE])):
        place = folder / str(ranks)
        place.mkdir()
        run_in_ranks(ranks, partial(compress_all, dense, place, names))
    for step in (cancel, resume):
        run_in_ranks(2, partial(step, dense, folder / "2"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
