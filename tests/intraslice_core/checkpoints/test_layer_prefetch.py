"""Layers are read from disk ahead of a pass, each once, and a failing read is a typed error."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import torch

from intraslice_core.checkpoints import layer_prefetch
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader, StoredTensors
from intraslice_core.errors import BrokenCheckpointError, NonFiniteWeightError
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_model

CPU = torch.device("cpu")
LAYERS = 5


class Reads:
    """Names that were read ahead, by thread and in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[tuple[str, ...]] = []
        self.threads: set[str] = set()
        read_ahead = StoredTensors.read_ahead

        def recording(
            stored: StoredTensors, names: Collection[str], stopped: threading.Event
        ) -> None:
            self.names.append(tuple(names))
            self.threads.add(threading.current_thread().name)
            read_ahead(stored, names, stopped)

        monkeypatch.setattr(StoredTensors, "read_ahead", recording)

    @property
    def layers(self) -> list[int]:
        """Return the layers that were read ahead, in order, once all threads have ended."""
        for thread in threading.enumerate():
            if thread.name.startswith("read layer"):
                thread.join()
        return [int(names[0].split(".")[2]) for names in self.names]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[DenseLayerReader]:
    dense = tiny_llama(tmp_path, num_hidden_layers=LAYERS)
    with CheckpointReader(dense) as reader:
        yield DenseLayerReader(reader, CPU, torch.float32)


def in_small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the page cache cannot keep a checkpoint."""

    class Memory:
        available = 0

    monkeypatch.setattr(layer_prefetch.psutil, "virtual_memory", Memory)


def test_every_layer_after_the_first_is_read_in_a_thread(
    layers: DenseLayerReader, reads: Reads
) -> None:
    for layer in range(LAYERS):
        layers.weights(layer)
    assert reads.layers == [1, 2, 3, 4]
    assert reads.threads == {f"read layer {layer}" for layer in range(1, LAYERS)}
    assert len({name for names in reads.names for name in names}) == 9 * 4


def test_a_checkpoint_that_fits_the_page_cache_is_read_once(
    layers: DenseLayerReader, reads: Reads
) -> None:
    for _ in range(3):
        for layer in range(LAYERS):
            layers.weights(layer)
    assert reads.layers == [1, 2, 3, 4]


def test_a_larger_checkpoint_is_read_ahead_in_every_pass_and_backwards(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_memory(monkeypatch)
    dense = tiny_llama(tmp_path, num_hidden_layers=LAYERS)
    with CheckpointReader(dense) as reader:
        layers = DenseLayerReader(reader, CPU, torch.float32)
        for layer in (*range(LAYERS), *reversed(range(LAYERS))):
            layers.weights(layer)
    assert reads.layers == [1, 2, 3, 4, 2, 1, 0]


def test_a_layer_that_is_used_twice_is_not_read_again(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_memory(monkeypatch)
    dense = tiny_llama(tmp_path, num_hidden_layers=LAYERS)
    with CheckpointReader(dense) as reader:
        layers = DenseLayerReader(reader, CPU, torch.float32)
        for layer in (0, 0, 1, 1, 2, 4):
            layers.weights(layer)
    assert reads.layers == [1, 2, 3]


def test_reading_ahead_changes_no_weight(tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=2)
    with CheckpointReader(save_checkpoint(model, tmp_path)) as reader:
        layers = DenseLayerReader(reader, CPU, torch.float32)
        for layer in range(2):
            expected = model.model.layers[layer].mlp.up_proj.weight
            assert torch.equal(layers.weights(layer).up.weight, expected)


def test_a_file_that_is_shortened_during_a_pass_is_a_typed_error(
    tmp_path: Path, layers: DenseLayerReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers.weights(0)
    layers.weights(1)  # layer 2 is in the page cache
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(1000)
    layers._prefetch._last = 2
    layers._prefetch._reading = layer_prefetch._Reading(
        3, lambda stopped: layers._reader.read_ahead(layers._stored_names(3), stopped)
    )
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors: the file was shortened"):
        layers.weights(3)


def test_a_file_that_disappears_is_a_typed_error(tmp_path: Path) -> None:
    with CheckpointReader(tiny_llama(tmp_path)) as reader:
        names = [name for name in reader.names if ".layers.1." in name]
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(BrokenCheckpointError, match="No such file"):
            reader.read_ahead(names, threading.Event())


def test_a_stopped_read_ends_early(tmp_path: Path) -> None:
    """A file without its data can be read ahead only if nothing is read."""
    with CheckpointReader(tiny_llama(tmp_path)) as reader:
        with (tmp_path / "model.safetensors").open("r+b") as stream:
            stream.truncate(1000)
        stopped = threading.Event()
        stopped.set()
        reader.read_ahead(reader.names, stopped)
        with pytest.raises(BrokenCheckpointError):
            reader.read_ahead(reader.names, threading.Event())


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with CheckpointReader(save_checkpoint(model, tmp_path)) as reader:
        layers = DenseLayerReader(reader, CPU, torch.float32)
        layers.weights(0)
        with pytest.raises(NonFiniteWeightError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
            layers.weights(1)
