"""Settings of GGUF files that depend on the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from intraslice_core.checkpoints.gguf.description import GgufModel, describe_header
from intraslice_core.checkpoints.gguf.header import read_header
from intraslice_core.errors import UnsupportedArchitectureError
from tests.intraslice_core.checkpoints.gguf.family_cases import FAMILY_CASES, MIXED_LAYERS
from tests.intraslice_core.checkpoints.gguf.files import tiny, write_gguf


def described(directory: Path, name: str, **metadata: Any) -> GgufModel:
    """Return the description of a case's file with changed metadata."""
    case = FAMILY_CASES[name]
    file = write_gguf(
        directory / "a.gguf",
        tiny(case.variant or case.architecture, **case.settings),
        case.architecture,
        {**case.metadata, **metadata},
    )
    return describe_header(read_header(file))


def test_window_of_exaone4_is_kept_for_any_number_of_layers(tmp_path: Path) -> None:
    # llama.cpp knows the 32B model by its 64 layers and ignores the window of others.
    metadata: dict[str, Any] = {"attention.sliding_window": 6}
    metadata["attention.sliding_window_pattern"] = [True, False, True]
    settings = described(tmp_path, "exaone4", **metadata).settings
    assert (settings["sliding_window"], settings["layer_types"]) == (6, MIXED_LAYERS)


def test_exaone4_without_window_has_full_attention(tmp_path: Path) -> None:
    settings = described(tmp_path, "exaone4").settings
    assert (settings["sliding_window"], set(settings["layer_types"])) == (None, {"full_attention"})


def test_window_makes_an_olmo_3(tmp_path: Path) -> None:
    settings = described(tmp_path, "olmo2", **{"attention.sliding_window": 9}).settings
    assert (settings["model_type"], settings["sliding_window"]) == ("olmo3", 9)


def test_unscaled_queries_make_a_mistral(tmp_path: Path) -> None:
    settings = described(tmp_path, "mistral3_without_scaled_queries").settings
    assert settings["model_type"] == "mistral"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("granite", "rope.scaling.finetuned", False),
        ("ministral3", "rope.scaling.type", "none"),
        ("cohere2", "rope.freq_base_swa", 5e5),
        ("exaone4", "rope.freq_base_swa", 5e5),
        ("glm4", "rope.dimension_sections", [8, 12, 12, 0]),
    ],
)
def test_setting_that_the_family_lacks_is_rejected(
    name: str, key: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"a\.gguf: .* is not supported"):
        described(tmp_path, name, **{key: value})
