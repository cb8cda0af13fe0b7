"""A model on a device writes as many sequences at once as its free memory allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from intraslice_core import writing
from intraslice_core.calibration.decoding import write_sequences
from intraslice_core.calibration.writing_pace import WritingListener
from intraslice_core.device_memory import lowered_batches_to
from intraslice_core.errors import OutOfDeviceMemoryError
from intraslice_core.progress import never_cancelled
from tests.intraslice_core.calibration.test_decoding import drafts_of, passes_of
from tests.intraslice_core.tiny_models import tiny_model
from tests.on_cuda.devices import REAL, observed

LENGTH = 20
SEQUENCE_BYTES = 3 * 2 * 2 * 16 * 4 * LENGTH + 4 * 259 * 4
"""Keys and values of three layers with two heads of 16, and four copies of the logits."""
SEQUENCES = 12

pytestmark = pytest.mark.skipif(REAL, reason="a real device has memory for libraries, too")


def write(model: Any, on_progress: WritingListener = lambda _: None) -> list[list[int]]:
    rows = write_sequences(
        model,
        drafts_of([LENGTH] * SEQUENCES),
        should_cancel=never_cancelled,
        on_progress=on_progress,
    )
    return [row.tolist() for row in rows]


def model_bytes() -> int:
    tensors = [*tiny_model().parameters(), *tiny_model().buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.fixture(scope="module")
def written_on_the_host() -> list[list[int]]:
    return write(tiny_model())


@pytest.mark.parametrize(("fitting", "largest"), [(0, 1), (5, 4), (100, SEQUENCES)])
def test_the_batch_follows_from_the_free_memory(
    written_on_the_host: list[list[int]], fitting: int, largest: int
) -> None:
    """Memory for five sequences gives three batches of four, which are as few and equal."""
    slack = SEQUENCE_BYTES // 2
    memory = model_bytes() + writing.RESERVED_BYTES + fitting * SEQUENCE_BYTES + slack
    with observed(memory) as observation:
        model = tiny_model().to("cuda")
        with passes_of(model) as shapes:
            assert write(model) == written_on_the_host
        del model
    assert max(rows for rows, _ in shapes) == largest
    assert observation.left == 0


def test_batches_are_halved_where_memory_is_taken_meanwhile(
    written_on_the_host: list[list[int]],
) -> None:
    warnings: list[str] = []
    taken: list[torch.Tensor] = []

    def take_what_is_free(_: object) -> None:
        if not taken:
            free, _total = torch.cuda.mem_get_info()
            taken.append(torch.empty(free - 64, dtype=torch.uint8, device="cuda"))

    with observed(2**30):
        model = tiny_model().to("cuda")
        with lowered_batches_to(warnings.append), passes_of(model) as shapes:
            assert write(model, take_what_is_free) == written_on_the_host
        taken.clear()
    assert max(rows for rows, _ in shapes) == SEQUENCES
    assert shapes[-1][0] == SEQUENCES // 2
    assert warnings[0].startswith("the number of sequences written at once was lowered from 12 to")


def test_a_device_without_memory_for_one_sequence_is_an_error() -> None:
    with observed(model_bytes() + SEQUENCE_BYTES // 2):
        model = tiny_model().to("cuda")
        with pytest.raises(OutOfDeviceMemoryError) as caught:
            write(model)
    assert caught.value.field == "compression.calibration.sequence_length"
