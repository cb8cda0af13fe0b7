"""Hidden states cross between host and device not at all where they fit, else without waiting."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import pytest
import torch

from intraslice_core import residency
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.device import release_memory
from intraslice_core.errors import NonFiniteWeightError
from intraslice_core.evaluation.clock import DeviceClock, seconds_between
from intraslice_core.evaluation.verification import _device_here
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage, never_cancelled
from intraslice_core.publication import verification_device
from intraslice_core.run import Run
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_model
from tests.on_cuda.devices import LARGE, REAL, compress, observed, same_bytes, settings
from tests.pretend_cuda.log import DeviceLog

LAYERS = 2
CROSSINGS = 9
"""Copies of each batch of each layer where hidden states lie in host memory.

The pass of the attention reads both and writes the dense ones, that of the MLP reads and writes
both, and that past the sliced MLP reads and writes the compressed ones.
"""
BATCHES = 2
"""Seven sequences and the one that is held out, in batches of at most eight."""
WAITS: dict[str, int] = {
    "slicegpt": 48,
    "modegpt": 75,
    "fusegpt": 428,
    "2ssp": 50,
    "transact": 124,
    "disp": 286,
}
"""Waits of each run of two layers whose hidden states are on the host, by method."""

recorded = pytest.mark.skipif(REAL, reason="nothing is recorded on a real device")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense", num_hidden_layers=LAYERS)


@pytest.fixture
def full_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no estimate fit the device."""
    monkeypatch.setattr(residency, "DEVICE_SHARE", 0.0)


class Crossings:
    """Copies and waits of hidden states while layers are compressed.

    Args:
        log: record of the device; None on a real one, where nothing is counted.
        out: directory of the result.
    """

    def __init__(self, log: DeviceLog | None, out: Path) -> None:
        self.out = out
        self.messages: list[str] = []
        self._log = log
        self._before: Counter[str] | None = None

    def listen(self, event: ProgressEvent) -> None:
        self.messages.append(event.message)
        if event.stage is Stage.COMPRESS and self._before is None:
            self._before = self._counted()

    @property
    def counts(self) -> Counter[str]:
        """Return the copies and waits since the first layer was begun."""
        assert self._before is not None
        return self._counted() - self._before

    def _counted(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        if self._log is None:
            return counts
        for counter, name in ((self._log.copies, "copies"), (self._log.waits, "waits")):
            for (_, place), count in counter.items():
                if place.startswith(("intraslice_core/transfers.py", "intraslice_core/hidden_sta")):
                    counts[name] += count
        return counts


@pytest.fixture(scope="module")
def runs(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Crossings]:
    """Runs with the hidden states on the device and in host memory."""
    runs = {}
    for name, share in (("device", residency.DEVICE_SHARE), ("host", 0.0)):
        out = tmp_path_factory.mktemp("runs") / name
        with pytest.MonkeyPatch.context() as patch, observed() as observation:
            patch.setattr(residency, "DEVICE_SHARE", share)
            runs[name] = Crossings(observation.log, out)
            compress(dense, out, settings(), runs[name].listen)
    return runs


@recorded
def test_hidden_states_that_fit_never_leave_the_device(runs: dict[str, Crossings]) -> None:
    assert runs["device"].counts == Counter()
    assert any("hidden states stay on cuda" in message for message in runs["device"].messages)


@recorded
def test_hidden_states_on_the_host_are_copied_without_waiting(runs: dict[str, Crossings]) -> None:
    assert runs["host"].counts == Counter(copies=CROSSINGS * BATCHES * LAYERS)
    assert any("hidden states lie in host memory" in message for message in runs["host"].messages)


def test_the_place_of_hidden_states_changes_no_byte(runs: dict[str, Crossings]) -> None:
    assert same_bytes(runs["device"].out, runs["host"].out)


@pytest.mark.parametrize("method", WAITS)
def test_hidden_states_of_every_kind_of_method_may_lie_on_the_host(
    dense: Path, tmp_path: Path, full_device: None, method: str
) -> None:
    with observed() as observation:
        compress(dense, tmp_path / "out", settings(method=method))
    observation.require_clean(WAITS[method])


@recorded
def test_weights_are_checked_on_the_device_with_one_wait_for_each_layer(dense: Path) -> None:
    with observed() as observation, CheckpointReader(dense) as reader:
        layers = DenseLayerReader(reader, torch.device("cuda"), torch.float32)
        for layer in range(LAYERS):
            layers.weights(layer)
        assert observation.log is not None
        assert observation.log.waits.total() == LAYERS


def test_weights_that_are_not_finite_are_named_on_the_device(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[3, 5] = float("inf")
    with CheckpointReader(save_checkpoint(model, tmp_path)) as reader, observed():
        layers = DenseLayerReader(reader, torch.device("cuda"), torch.float32)
        layers.weights(0)
        with pytest.raises(NonFiniteWeightError, match=r"model\.layers\.1\.self_attn\.q_proj"):
            layers.weights(1)


def test_a_result_that_does_not_fit_the_device_is_verified_on_the_host(
    dense: Path, tmp_path: Path, full_device: None
) -> None:
    messages: list[str] = []
    run = Run(
        on_progress=lambda event: messages.append(event.message), should_cancel=never_cancelled
    )
    with observed(), run.reporting():
        compress(dense, tmp_path / "out", settings(method="flap"))
        assert verification_device(tmp_path / "out", "cuda", run) == torch.device("cpu")
    assert any("the verification takes place on the CPU" in message for message in messages)


@recorded
@pytest.mark.parametrize(("memory", "device"), [(LARGE, "cuda"), (2**16, "cpu")])
def test_a_reference_of_another_machine_is_checked_where_the_model_fits(
    dense: Path, memory: int, device: str
) -> None:
    with observed(memory=memory):
        assert _device_here("cuda:7", dense) == device


def test_every_run_of_a_process_reports_its_own_peak(dense: Path, tmp_path: Path) -> None:
    with observed():
        torch.zeros(2**27, dtype=torch.uint8, device="cuda")  # freed at once
        earlier = torch.cuda.max_memory_allocated()
        report = compress_model(str(dense), tmp_path / "out", settings(method="flap"), verify=False)
        assert report.peak_memory_bytes is not None
        assert 0 < report.peak_memory_bytes < earlier


def test_memory_of_cycles_is_returned_before_another_process_starts() -> None:
    with observed():
        gc.disable()
        try:
            cycle: list[object] = [torch.ones(1024, device="cuda")]
            cycle.append(cycle)
            del cycle
            assert torch.cuda.memory_allocated() > 0
            release_memory()
            assert torch.cuda.memory_allocated() == 0
        finally:
            gc.enable()


def test_durations_on_a_device_are_those_of_its_events() -> None:
    with observed() as observation:
        clock, matrix = DeviceClock(torch.device("cuda")), torch.ones(64, 64, device="cuda")
        clock.settle()
        start = clock.now()
        torch.mm(matrix, matrix)
        end = clock.now()
        assert not isinstance(start, float)
        assert seconds_between(start, end) > 0.0
        if observation.log is not None:  # the host has waited to settle, and not in between
            assert [name for name, _ in observation.log.waits] == ["synchronize"]
