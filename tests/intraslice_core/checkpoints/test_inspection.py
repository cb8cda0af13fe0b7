"""A model's size is read, and limited, from its headers alone."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from intraslice_core.checkpoints.inspection import inspect_model, require_within
from intraslice_core.checkpoints.weight_files import MAX_SETTINGS_BYTES
from intraslice_core.config import ModelLimits
from intraslice_core.errors import BrokenCheckpointError, ModelTooLargeError
from tests.intraslice_core.tiny_models import tiny_llama, tiny_model

MIB = 2**20
NOBODY = 65534


def sparse_model(directory: Path, parameters: int) -> Path:
    """Write a checkpoint of the given size as a sparse file, which takes no disk space."""
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    entry = {"dtype": "F32", "shape": [parameters], "data_offsets": [0, 4 * parameters]}
    text = json.dumps({"w": entry}).encode()
    with (directory / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 4 * parameters)
    return directory


@contextmanager
def as_plain_user() -> Iterator[None]:
    """Drop the rights of root, which may read everything, while the context lasts."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_another_user_is_named_with_the_reader(name: str) -> None:
    # Transformers saves weights with mode 0600. tmp_path itself is closed to other users.
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        place = sparse_model(Path(directory) / "m", 1)
        (place / name).chmod(0o000)
        with as_plain_user(), pytest.raises(BrokenCheckpointError) as caught:
            inspect_model(place)
        reader = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert caught.value.message == f"{name} cannot be read: Permission denied"
    assert str(caught.value.hint).endswith(f"for user id {reader}")


def test_facts_are_those_of_the_model(tmp_path: Path) -> None:
    place = tiny_llama(tmp_path / "m")
    facts = inspect_model(place)
    assert facts.model_type == "llama"
    assert facts.parameters == tiny_model().num_parameters()
    assert facts.bytes == (place / "model.safetensors").stat().st_size


def test_shards_count_together(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="60KB")
    facts = inspect_model(tmp_path)
    assert facts.parameters == tiny_model().num_parameters()
    assert facts.bytes == sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("limits", "rejected"),
    [
        (ModelLimits(max_parameters=99), True),
        (ModelLimits(max_parameters=100), False),
        (ModelLimits(max_bytes=400), True),
        (ModelLimits(max_bytes=4000), False),
        (ModelLimits(), False),
    ],
)
def test_limits_are_inclusive(tmp_path: Path, limits: ModelLimits, rejected: bool) -> None:
    facts = inspect_model(sparse_model(tmp_path / "m", 100))
    if rejected:
        with pytest.raises(ModelTooLargeError, match="are allowed"):
            require_within(facts, limits)
    else:
        require_within(facts, limits)


def test_a_terabyte_is_measured_in_a_few_megabytes(tmp_path: Path) -> None:
    place = sparse_model(tmp_path / "m", 2**38)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from intraslice_core.checkpoints.inspection import inspect_model\n"
        "facts = inspect_model(Path(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "print(facts.parameters)\n"
    )

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 * MIB, 512 * MIB))

    done = subprocess.run(
        [sys.executable, "-c", code, str(place)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=bounded,
    )
    assert done.stdout.strip() == str(2**38), done.stderr


def test_settings_of_implausible_size_are_rejected_without_being_read(tmp_path: Path) -> None:
    place = sparse_model(tmp_path / "m", 1)
    for name in ("config.json", "tokenizer.json", "merges.txt"):
        with (place / name).open("r+b" if (place / name).exists() else "wb") as stream:
            stream.truncate(MAX_SETTINGS_BYTES + 1)
        with pytest.raises(BrokenCheckpointError, match=name):
            inspect_model(place)
        (place / name).unlink()


@pytest.mark.parametrize(
    ("weight_map", "complaint"),
    [
        ({"w": "../model.safetensors"}, "points outside"),
        ({"w": "/etc/passwd"}, "points outside"),
        ({"w": "a\0b"}, "points outside"),
        ({"w": "gone.safetensors"}, "is missing"),
        ({f"w{n}": f"{n}.safetensors" for n in range(2001)}, "names 2001 files"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_invalid_index_is_rejected(tmp_path: Path, weight_map: object, complaint: str) -> None:
    place = sparse_model(tmp_path / "m", 1)
    (place / "model.safetensors").unlink()
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BrokenCheckpointError, match=complaint):
        inspect_model(place)


def test_tensor_of_a_hundred_thousand_dimensions_is_rejected(tmp_path: Path) -> None:
    place = sparse_model(tmp_path / "m", 1)
    entry = {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}
    text = json.dumps({"w": entry}).encode()
    (place / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(BrokenCheckpointError, match="dimensions"):
        inspect_model(place)


def test_only_pickles_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BrokenCheckpointError, match="pickle"):
        inspect_model(tmp_path)
