"""Results work with transformers' Auto classes, with and without the IntraSlice package."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from intraslice_core.config import CalibrationConfig, CompressionConfig, Target
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.modeling import train_heads
from tests.intraslice_core.tiny_models import tiny_llama

TARGETS: tuple[Target, ...] = ("research", "adaptive", "stock")

# -S keeps the editable install's .pth file from running; the packages themselves are put back.
LOADER = f"""
import sys
sys.path.append(sys.argv[1])
import importlib.util
assert importlib.util.find_spec("intraslice_core") is None
from pathlib import Path
from transformers import AutoTokenizer
sys.path.insert(0, {str(Path(train_heads.__file__).parent)!r})
import train_heads
for place in map(Path, sys.argv[2:]):
    options = {{}} if place.name == "stock" else {{"trust_remote_code": False}}
    assert AutoTokenizer.from_pretrained(place, **options)("ab")["input_ids"]
    train_heads.check_all(place, place.with_name(place.name + "-trained"), trust_remote_code=True)
    assert AutoTokenizer.from_pretrained(place, **options)("ab")["input_ids"]
assert "intraslice_core" not in sys.modules
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A result of every target, by its name."""
    folder = tmp_path_factory.mktemp("results")
    dense = tiny_llama(folder / "dense", tie_word_embeddings=False)
    for target in TARGETS:
        config = CompressionConfig(
            target=target,
            ratio=0.3,
            round_to=2,
            dtype="float32",
            calibration=CalibrationConfig(source="pydoc", samples=16, sequence_length=32),
        )
        compress_model(str(dense), folder / target, config, verify=False)
    return {target: folder / target for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_heads_train_and_are_saved_and_loaded_with_the_package(
    results: dict[str, Path], target: Target, tmp_path: Path
) -> None:
    train_heads.check_all(results[target], tmp_path, trust_remote_code=False)
    language_model = AutoModelForCausalLM.from_pretrained(results[target])
    classifier = train_heads.AUTO_CLASSES["sequence"].from_pretrained(results[target])
    tokens = torch.arange(3, 35).view(2, 16)
    torch.testing.assert_close(
        classifier.eval().model(tokens).last_hidden_state,
        language_model.eval().model(tokens).last_hidden_state,
    )


def test_results_load_without_the_package_and_without_a_question(
    results: dict[str, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-I", "-S", "-c", LOADER, sysconfig.get_path("purelib")]
    done = subprocess.run(
        [*command, *map(str, results.values())],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "trust_remote_code" not in done.stdout + done.stderr


def test_tokenizers_load_without_a_question_where_the_package_is_imported(
    results: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(question: str) -> str:
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", ask)
    for place in results.values():
        assert AutoTokenizer.from_pretrained(place)("ab")["input_ids"]


@pytest.mark.parametrize("target", ["research", "adaptive"])
def test_saving_a_language_model_keeps_the_code_of_its_heads(
    results: dict[str, Path], target: Target, tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_pretrained(results[target]).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    expected = {cls.__name__ for cls in train_heads.AUTO_CLASSES.values()}
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM", *expected} == auto_map.keys()
    for entry in auto_map.values():
        assert (tmp_path / f"{entry.partition('.')[0]}.py").is_file()
