"""Hidden states and models are on a GPU where the cost model says that they fit its free memory.

Wide moments are factorised in place where copies of them do not fit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intraslice_core import residency
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.cost_model import stage_bytes
from intraslice_core.cost_model.memory import PROCESS_BYTES
from intraslice_core.device import DeviceMemory, HostMemory
from intraslice_core.host_limit import sharing_host
from intraslice_core.plan import ModelGeometry
from intraslice_core.residency import DEVICE_SHARE, place_hidden_states, place_models

GPU = torch.device("cuda")
GEOMETRY = ModelGeometry(
    num_hidden_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    tie_word_embeddings=False,
)
CONFIG = CompressionConfig(
    ratio=0.3, calibration=CalibrationConfig(source="pydoc", samples=128, sequence_length=2048)
)
COPIED = stage_bytes(GEOMETRY, CONFIG, 2, 2).values()
IN_PLACE = stage_bytes(GEOMETRY, CONFIG, 2, 2, in_place=True).values()
NEEDED = max(stage.host + stage.device for stage in COPIED)


def with_free_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(residency, "free_device_memory", lambda device: free)
    monkeypatch.setattr(residency, "resolve_device", torch.device)


def test_hidden_states_that_fit_are_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, int(NEEDED / DEVICE_SHARE) + 1)
    placement = place_hidden_states(GEOMETRY, CONFIG, GPU, (2, 2), Path("unused"))
    assert isinstance(placement.memory, DeviceMemory)
    assert not placement.in_place
    assert placement.message is not None
    assert "4.29 GB of hidden states stay on cuda" in placement.message


@pytest.mark.parametrize("offload_dir", [None, Path("states")])
def test_hidden_states_that_do_not_fit_are_on_the_host(
    monkeypatch: pytest.MonkeyPatch, offload_dir: Path | None
) -> None:
    with_free_memory(monkeypatch, int(NEEDED / DEVICE_SHARE) - 1)
    placement = place_hidden_states(GEOMETRY, CONFIG, GPU, (2, 2), offload_dir)
    assert isinstance(placement.memory, HostMemory)
    assert placement.message is not None
    place = "host memory" if offload_dir is None else "states"
    assert f"4.29 GB of hidden states lie in {place}" in placement.message
    assert not placement.in_place


@pytest.mark.parametrize(("spare", "memory"), [(1, DeviceMemory), (-1, HostMemory)])
def test_moments_whose_copies_do_not_fit_are_factorised_in_place(
    monkeypatch: pytest.MonkeyPatch, spare: int, memory: type
) -> None:
    """Then hidden states may fit the GPU after all."""
    needed = max(stage.host + stage.device for stage in IN_PLACE)
    with_copies = max(stage.device for stage in COPIED)
    assert needed < with_copies
    with_free_memory(monkeypatch, int(needed / DEVICE_SHARE) + spare)
    placement = place_hidden_states(GEOMETRY, CONFIG, GPU, (2, 2), None)
    assert placement.in_place
    assert isinstance(placement.memory, memory)
    assert placement.message is not None
    assert (
        f"moments are factorised in place: with copies a stage needs {with_copies / 1e9:.2f} GB"
    ) in placement.message


def test_methods_without_wide_moments_have_nothing_to_factorise_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_free_memory(monkeypatch, 2**20)
    monkeypatch.setattr(residency, "host_memory_bytes", lambda: 2**20)
    narrow = GEOMETRY.model_copy(update={"intermediate_size": 512, "num_attention_heads": 4})
    flap = CONFIG.model_copy(update={"method": "flap"})
    for device in (GPU, torch.device("cpu")):
        for geometry, config in ((GEOMETRY, flap), (narrow, CONFIG)):
            assert not place_hidden_states(geometry, config, device, (2, 2), None).in_place


def test_a_cpu_has_no_choice_of_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "host_memory_bytes", lambda: 2**40)
    placement = place_hidden_states(GEOMETRY, CONFIG, torch.device("cpu"), (2, 2), None)
    assert isinstance(placement.memory, HostMemory)
    assert placement.message is None
    assert not placement.in_place


def test_a_cpu_factorises_in_place_by_the_limit_of_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = int((PROCESS_BYTES + NEEDED) / DEVICE_SHARE) - 1
    monkeypatch.setattr(residency, "host_memory_bytes", lambda: limit)
    placement = place_hidden_states(GEOMETRY, CONFIG, torch.device("cpu"), (2, 2), None)
    assert placement.in_place
    assert placement.message is not None
    assert f"{limit / 1e9:.2f} GB of the host are for this run" in placement.message
    # Hidden states in files leave enough for copies.
    files = place_hidden_states(GEOMETRY, CONFIG, torch.device("cpu"), (2, 2), Path("states"))
    assert not files.in_place


def test_runs_that_share_a_host_count_on_equal_parts_of_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enough = int((PROCESS_BYTES + NEEDED) / DEVICE_SHARE) + 1
    monkeypatch.setattr(residency, "host_memory_bytes", lambda: 2 * enough)
    cpu = torch.device("cpu")
    for runs, in_place in ((2, False), (3, True)):
        with sharing_host(runs):
            placement = place_hidden_states(GEOMETRY, CONFIG, cpu, (2, 2), None)
        assert placement.in_place == in_place


def test_processes_share_the_memory_of_their_host(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = int((PROCESS_BYTES + NEEDED) / DEVICE_SHARE) + 1
    cases = ((1, enough, False), (2, enough, True), (2, 2 * enough, False))
    for processes, limit, in_place in cases:
        monkeypatch.setattr(residency, "host_memory_bytes", lambda limit=limit: limit)
        placement = place_hidden_states(
            GEOMETRY, CONFIG, torch.device("cpu"), (2, 2), None, processes
        )
        assert placement.in_place == in_place, (processes, limit)


def test_models_of_a_cpu_stay_on_it() -> None:
    assert place_models("cpu", 10**15, "the evaluation").device == "cpu"


@pytest.mark.parametrize(("needed", "device"), [(79, "cuda:0"), (81, "cpu")])
def test_models_that_do_not_fit_are_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, needed: int, device: str
) -> None:
    with_free_memory(monkeypatch, 100 * 10**9)
    placement = place_models("cuda:0", needed * 10**9, "the evaluation")
    assert placement.device == device
    if device == "cpu":
        assert placement.message == (
            "the evaluation takes place on the CPU: it needs 81.00 GB, and cuda:0 has 100.00 GB "
            "free"
        )
    else:
        assert placement.message is None
