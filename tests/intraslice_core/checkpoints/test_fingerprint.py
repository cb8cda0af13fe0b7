"""A dense model's digest: of what it is, not of where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.checkpoints.manifest import model_fingerprint


def model(place: Path, weights: bytes = b"weights", settings: str = "{}") -> Path:
    place.mkdir()
    (place / "config.json").write_text(settings)
    (place / "model-1.safetensors").write_bytes(weights)
    (place / "model-2.safetensors").write_bytes(b"more")
    return place


def test_copies_share_it_whatever_lies_beside_them(tmp_path: Path) -> None:
    here, there = model(tmp_path / "here"), model(tmp_path / "there")
    (there / "README.md").write_text("a card")
    assert model_fingerprint(here) == model_fingerprint(there)
    assert len(model_fingerprint(here)) == 64


@pytest.mark.parametrize("change", [{"weights": b"weightz"}, {"settings": "{ }"}])
def test_a_byte_changes_it(tmp_path: Path, change: dict[str, object]) -> None:
    assert model_fingerprint(model(tmp_path / "a")) != model_fingerprint(
        model(tmp_path / "b", **change)  # type: ignore[arg-type]
    )
