"""Operations of connected ranks: `torchrun operations.py FOLDER` writes what every rank gets."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from intraslice_core import device_memory
from intraslice_core.device_memory import BatchSize
from intraslice_core.errors import NumericalError, OutOfDeviceMemoryError
from intraslice_core.rank_connection import connected_ranks
from intraslice_core.ranks import MAIN, Ranks

PROCESSES = 3
LARGE = 5_000_000
"""Elements of a float64 tensor above the size of a bucket."""
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 MiB."


@dataclass
class Nested:
    """Tensors of several kinds within an object."""

    tensors: dict[str, Tensor]
    note: str


def nested() -> Nested:
    """Return an object whose tensors differ in dtype, shape and layout."""
    matrix = torch.arange(6.0).view(2, 3)
    tensors = {
        "matrix": matrix.to(torch.bfloat16),
        "transposed": matrix.mT,
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
    }
    return Nested(tensors=tensors, note="as it was")


def fails(layer: int) -> float:
    raise NumericalError("no factor", layer=layer, module="mlp", hint="more text")


def error_of(call: Any) -> tuple[str, int | None, str | None, str | None]:
    """Return what distinguishes the error of a call."""
    try:
        call()
    except NumericalError as error:
        return error.message, error.layer, error.module, error.hint
    raise AssertionError("no error")


def fill_the_device() -> float:
    raise torch.OutOfMemoryError(OUT_OF_MEMORY)


def lowered(ranks: Ranks) -> dict[str, Any]:
    """Return what a rank attempts while another one finds its device full, at a place each time.

    With 16 sequences rank 0 fails alone, before a common operation, with 8 it fails in what it
    computes for all, with 4 rank 1 fails where others wait for it, and with 2 rank 2 after the last
    operation.
    """
    batch, sizes = BatchSize(requested=16, ranks=ranks), list[int]()

    def attempt(size: int) -> list[int]:
        sizes.append(size)
        if (ranks.rank, size) == (0, 16):
            fill_the_device()
        total = torch.full((2,), float(size))
        ranks.sum_([total])
        ranks.computed(0, lambda: float(total[0]) if size != 8 else fill_the_device())
        if (ranks.rank, size) == (1, 4):
            fill_the_device()
        parts = ranks.gathered(lambda: torch.full((2,), size + ranks.rank))
        if (ranks.rank, size) == (2, 2):
            fill_the_device()
        return [int(total[0]), *(int(tensor[0]) for tensor in parts)]

    return {"result": batch.repeat(attempt), "sizes": sizes, "size": batch.size}


def lacks_room(ranks: Ranks, full: int) -> bool:
    """Return whether a rank lacks room if the device of one of them is full."""
    with patch.object(device_memory, "has_room_to_spare", lambda _: ranks.rank != full):
        return device_memory.any_rank_lacks_room(ranks, torch.device("cpu"))


def results(ranks: Ranks) -> dict[str, Any]:
    """Return the results of all operations on one rank."""
    small = torch.full((2, 2), 0.1 + ranks.rank, dtype=torch.float64)
    other, single = torch.ones(3) * ranks.rank, torch.tensor(float(ranks.rank))
    large = torch.full((LARGE,), 1.0 + ranks.rank, dtype=torch.float64)
    strided = torch.full((4, 4), 1.0 * ranks.rank)[:, ::2]
    ranks.sum_([small, other, single, large, strided])
    owned = torch.tensor([1.0, 2.0]) * (1 + ranks.rank)
    ranks.sum_([owned], to=2)
    tasks = [partial(pow, 2, number) for number in range(7)]
    return {
        "rows": list(range(8))[ranks.share(8)],
        "row_count": ranks.share_size(8),
        "small": small,
        "other": other,
        "single": single,
        "large": float(large.unique()),
        "strided": strided.clone(),
        "owned": owned if ranks.rank == 2 else None,
        "totals": ranks.totals([ranks.rank, 0.25, True]),
        "nested": vars(ranks.computed(1, nested)),
        "gathered": ranks.gathered(lambda: ranks.rank * 10),
        "evaluated": ranks.evaluated(tasks),
        "lowered": lowered(ranks),
        "lacks_room": [lacks_room(ranks, full) for full in (1, PROCESSES)],
        "computed_error": error_of(lambda: ranks.computed(MAIN, partial(fails, 3))),
        "evaluated_error": error_of(lambda: ranks.evaluated([*tasks, partial(fails, 5)])),
    }


def main() -> None:
    """Write the results of this rank, with and without inference mode."""
    folder = Path(sys.argv[1])
    with connected_ranks(torch.device("cpu")) as ranks, torch.inference_mode():
        torch.save(results(ranks), folder / f"{ranks.rank}.pt")
    with connected_ranks(torch.device("cpu")) as ranks:  # the same processes, once more
        torch.save(results(ranks), folder / f"again-{ranks.rank}.pt")
    error = fail_while_others_wait(1)
    (folder / f"error-{os.environ['RANK']}.json").write_text(json.dumps(error))
    # Without the clean-up of the connections, on which the others still wait.
    sys.stderr.flush()
    os._exit(0)


def fail_while_others_wait(rank: int) -> dict[str, Any]:
    """Return the error of all ranks, and their attempts, if a sequence does not fit one device."""
    sizes = list[int]()
    try:
        with connected_ranks(torch.device("cpu")) as ranks:

            def attempt(size: int) -> None:
                sizes.append(size)
                if ranks.rank == rank:
                    fill_the_device()
                ranks.sum_([torch.ones(2)])

            BatchSize(requested=2, ranks=ranks).repeat(attempt)
    except OutOfDeviceMemoryError as error:
        return {"sizes": sizes, "field": error.field, "needed_bytes": error.needed_bytes}
    raise AssertionError("no error")


if __name__ == "__main__":
    main()
