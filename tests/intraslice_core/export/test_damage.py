"""Files damaged between writing and verification are detected and not published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from intraslice_core import pipeline
from intraslice_core.config import Target
from intraslice_core.errors import VerificationError
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.export.models import config, llama_with_merges

NAME = "model.layers.1.mlp.down_proj.weight"


def flip_a_bit(directory: Path) -> None:
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def remove_a_tensor(directory: Path) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    del weights[NAME]
    save_file(weights, file, metadata={"format": "pt"})


def change_the_configuration(directory: Path) -> None:
    file = directory / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"rms_norm_eps": 0.01, "norm_eps": 0.01}))


def change_the_tokenizer(directory: Path) -> None:
    file = directory / "tokenizer.json"
    file.write_text(file.read_text().replace('"a"', '"?"', 1))


def remove_the_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        truncate,
        remove_a_tensor,
        change_the_configuration,
        change_the_tokenizer,
        remove_the_weights,
    ],
)
@pytest.mark.parametrize("target", ["research", "adaptive", "stock"])
def test_damage_between_writing_and_verification_is_not_published(
    target: Target,
    damage: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify = pipeline.verify_staged

    def damage_and_verify(staged: Path, *rest: Any) -> Any:
        damage(staged)
        return verify(staged, *rest)

    monkeypatch.setattr(pipeline, "verify_staged", damage_and_verify)
    dense = llama_with_merges(tmp_path / "dense")
    settings = config(
        target, ratio=0.3, method="magnitude" if target != "stock" else "intraslice_plus"
    )
    with pytest.raises(VerificationError, match="what was written"):
        compress_model(str(dense), tmp_path / "out", settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]
