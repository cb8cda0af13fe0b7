"""Ranks add up, send and divide alike, whatever the number of sequences of each."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.errors import ConfigurationError, NumericalError
from intraslice_core.launcher import Launch, current_launch, is_main_process, without_launcher
from intraslice_core.rank_connection import (
    connected_ranks,
    require_launched_devices,
    require_sequences,
    require_single_process,
)
from intraslice_core.ranks import ALONE, MAIN, Ranks
from tests.intraslice_core.parallel import operations
from tests.intraslice_core.parallel.launching import launch

COUNT = operations.PROCESSES
LAUNCH = Launch(rank=1, count=2, local_rank=1, address="127.0.0.1", port=1)


@pytest.fixture(scope="module", params=["", "again-"])
def by_rank(request: pytest.FixtureRequest, launched: Path) -> list[dict[str, Any]]:
    """Results of every rank, of the first and of the second connection of the same processes."""
    return [
        torch.load(launched / f"{request.param}{rank}.pt", weights_only=False)
        for rank in range(COUNT)
    ]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("operations")
    done = launch(COUNT, operations.__name__, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_sequence_is_in_one_share(by_rank: list[dict[str, Any]]) -> None:
    shares = [results["rows"] for results in by_rank]
    assert sorted(row for share in shares for row in share) == list(range(8))
    assert (
        [len(share) for share in shares]
        == [results["row_count"] for results in by_rank]
        == [3, 3, 2]
    )


def test_sums_of_all_sizes_and_dtypes_are_exact_and_equal(by_rank: list[dict[str, Any]]) -> None:
    for results in by_rank:
        assert results["small"].dtype == torch.float64
        torch.testing.assert_close(results["small"], torch.full((2, 2), 3.3, dtype=torch.float64))
        assert torch.equal(results["small"], by_rank[0]["small"])
        assert results["other"].tolist() == [3.0, 3.0, 3.0]
        assert float(results["single"]) == 3.0
        assert results["large"] == 6.0
        assert results["strided"].tolist() == [[3.0, 3.0]] * 4
        assert results["totals"] == [3.0, 0.75, 3.0]
    assert by_rank[2]["owned"].tolist() == [6.0, 12.0]


def test_objects_arrive_with_their_tensors(by_rank: list[dict[str, Any]]) -> None:
    expected = operations.nested()
    for results in by_rank:
        assert results["nested"]["note"] == expected.note
        assert results["nested"]["tensors"].keys() == expected.tensors.keys()
        for name, tensor in expected.tensors.items():
            assert results["nested"]["tensors"][name].dtype == tensor.dtype
            assert torch.equal(results["nested"]["tensors"][name], tensor)


def test_results_are_in_order_on_all_ranks(by_rank: list[dict[str, Any]]) -> None:
    for results in by_rank:
        assert results["gathered"] == [0, 10, 20]
        assert results["evaluated"] == [1, 2, 4, 8, 16, 32, 64]


def test_an_error_of_one_rank_is_raised_on_all(by_rank: list[dict[str, Any]]) -> None:
    for results in by_rank:
        assert results["computed_error"] == ("no factor", 3, "mlp", "more text")
        assert results["evaluated_error"] == ("no factor", 5, "mlp", "more text")


def test_all_ranks_lower_their_batches_wherever_one_of_them_lacks_memory(
    by_rank: list[dict[str, Any]],
) -> None:
    for results in by_rank:
        assert results["lowered"] == {"result": [3, 1, 2, 3], "sizes": [16, 8, 4, 2, 1], "size": 1}


def test_all_ranks_know_that_the_device_of_one_of_them_has_no_room_to_spare(
    by_rank: list[dict[str, Any]],
) -> None:
    for results in by_rank:
        assert results["lacks_room"] == [True, False]


def test_a_sequence_that_does_not_fit_one_device_ends_all_ranks_with_its_error(
    launched: Path,
) -> None:
    for rank in range(COUNT):
        error = json.loads((launched / f"error-{rank}.json").read_text())
        field = "compression.calibration.sequence_length"
        assert error == {"sizes": [2, 1], "field": field, "needed_bytes": 2 * 2**20}


def test_a_single_rank_computes_everything_itself() -> None:
    tensor = torch.ones(2)
    ALONE.sum_([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert list(range(5))[ALONE.share(5)] == list(range(5))
    assert ALONE.share_size(5) == 5
    assert ALONE.computed(MAIN, lambda: 3) == 3
    assert ALONE.gathered(lambda: 3) == [3]
    assert ALONE.evaluated([lambda: 1, lambda: 2]) == [1, 2]
    assert ALONE.totals([1, True]) == [1.0, 1.0]
    with pytest.raises(NumericalError):
        ALONE.evaluated([partial(operations.fails, 0)])


def test_fewer_sequences_than_processes_are_rejected_by_name() -> None:
    ranks = Ranks()
    ranks.count = 4
    config = CompressionConfig(calibration=CalibrationConfig(source="pydoc", samples=3))
    with pytest.raises(ConfigurationError) as caught:
        require_sequences(ranks, config)
    assert caught.value.field == "calibration.samples"
    require_sequences(ALONE, config)


def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCH.environment().items():
        monkeypatch.setenv(name, value)


def test_the_environment_of_a_launch_describes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_launch() is None
    assert is_main_process()
    environment(monkeypatch)
    assert current_launch() == LAUNCH
    assert not is_main_process()


def test_programs_that_run_alone_do_not_see_the_launcher() -> None:
    variables = {"PATH": "/bin", "OMP_NUM_THREADS": "1"}
    assert without_launcher({**variables, **LAUNCH.environment(), "GROUP_RANK": "0"}) == variables


def test_sweeps_in_several_processes_are_rejected_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    require_single_process("a sweep")
    with pytest.raises(ConfigurationError, match="a sweep runs on one device, not on 2") as caught:
        require_single_process("a sweep", devices=2)
    assert caught.value.field == "devices"
    environment(monkeypatch)
    with pytest.raises(ConfigurationError, match="a sweep runs in one process"):
        require_single_process("a sweep")


def test_a_launcher_with_another_number_of_processes_is_rejected_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_launched_devices(CompressionConfig(devices=3))
    environment(monkeypatch)
    for devices in (1, LAUNCH.count):
        require_launched_devices(CompressionConfig(devices=devices))
    with pytest.raises(ConfigurationError, match="the launcher has started 2 processes") as caught:
        require_launched_devices(CompressionConfig(devices=3))
    assert caught.value.field == "devices"


@pytest.mark.parametrize(("device", "reason"), [("cuda:1", "one GPU"), ("mps", "mps")])
def test_devices_that_processes_cannot_share_are_rejected_by_name(
    device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(monkeypatch)
    with (
        pytest.raises(ConfigurationError, match=reason) as caught,
        connected_ranks(torch.device(device)),
    ):
        pass
    assert caught.value.field == "device"
