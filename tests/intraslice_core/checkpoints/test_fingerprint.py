"""The fingerprint of a dense model depends on its files' contents, not on their location."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from intraslice_core.checkpoints.manifest import model_fingerprint


def model(place: Path, weights: bytes = b"weights", settings: str = "{}") -> Path:
    place.mkdir()
    (place / "config.json").write_text(settings)
    (place / "model-1.safetensors").write_bytes(weights)
    (place / "model-2.safetensors").write_bytes(b"more")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return place


def test_copies_have_one_fingerprint_whatever_other_files_they_hold(tmp_path: Path) -> None:
    first, second = model(tmp_path / "first"), model(tmp_path / "second")
    (second / "README.md").write_text("a card")
    assert model_fingerprint(first) == model_fingerprint(second)
    assert len(model_fingerprint(first)) == 64


@pytest.mark.parametrize("change", [{"weights": b"weightz"}, {"settings": "{ }"}])
def test_a_changed_byte_changes_the_fingerprint(tmp_path: Path, change: dict[str, object]) -> None:
    assert model_fingerprint(model(tmp_path / "a")) != model_fingerprint(
        model(tmp_path / "b", **change)  # type: ignore[arg-type]
    )
