"""A training step that does not fit the device is repeated with more and smaller batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from intraslice_core.device_memory import lowered_batches_to
from intraslice_core.errors import OutOfDeviceMemoryError
from intraslice_core.finetuning.objective import Objective
from intraslice_core.finetuning.procedure import recover_checkpoint
from tests.intraslice_core.finetuning.training_runs import files_of, make_pair, work_on

Forward = Callable[[Objective, Tensor], Tensor]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")


def test_a_step_that_fails_midway_equals_one_with_half_the_batch(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward: Forward = Objective.forward
    sizes: list[int] = []

    def fail_once(objective: Objective, batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        if len(sizes) == 2:  # the first batch of the step has left its gradients
            raise out_of_memory()
        return forward(objective, batch)

    monkeypatch.setattr(Objective, "forward", fail_once)
    lowered = work_on(pair, tmp_path / "lowered", loss="ce", batch_size=4, gradient_accumulation=2)
    warnings: list[str] = []
    with lowered_batches_to(warnings.append):
        report, _ = recover_checkpoint(lowered)
    assert sizes[:6] == [4, 4, 2, 2, 2, 2]
    assert set(sizes[6:]) == {2}
    monkeypatch.setattr(Objective, "forward", forward)
    smaller = work_on(pair, tmp_path / "smaller", loss="ce", batch_size=2, gradient_accumulation=4)
    expected, _ = recover_checkpoint(smaller)
    assert [point.loss for point in report.losses] == [point.loss for point in expected.losses]
    assert files_of(tmp_path / "lowered") == files_of(tmp_path / "smaller")
    assert [warning.split(":")[0] for warning in warnings] == [
        "compression.recover.batch_size was lowered from 4 to 2"
    ]


def test_a_sequence_that_does_not_fit_names_its_length(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_objective: Objective, _batch: Tensor) -> Tensor:
        raise out_of_memory()

    monkeypatch.setattr(Objective, "forward", fail)
    with pytest.raises(OutOfDeviceMemoryError) as caught:
        recover_checkpoint(work_on(pair, tmp_path / "out", loss="ce"))
    assert caught.value.field == "compression.recover.sequence_length"
