"""The code that reports and model cards show loads the results of every target."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from intraslice_core.config import Target
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.loading import directory_name, snippets
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.export.models import config
from tests.intraslice_core.reports.samples import report
from tests.intraslice_core.tiny_models import tiny_llama


@pytest.mark.parametrize("target", ["research", "adaptive", "stock"])
def test_the_python_code_of_the_card_runs_beside_the_files(tmp_path: Path, target: Target) -> None:
    tiny_llama(tmp_path / "dense")
    settings = config(target=target, ratio=0.2)
    compress_model(str(tmp_path / "dense"), tmp_path / "out", settings, verify=False)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "out",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The capital of France is")


def content(target: Target, runtimes: tuple[str, ...], *exports: str) -> CompressionReport:
    original = report()
    settings = {
        **original.config.model_dump(),
        "target": target,
        "exports": exports or ("safetensors",),
    }
    if target == "stock":
        settings |= {"allocation": "uniform"}
    return original.model_copy(
        update={"config": type(original.config).model_validate(settings), "runtimes": runtimes}
    )


def shown(report_: CompressionReport, place: str = ".") -> dict[str, str]:
    return {snippet.runtime: snippet.code for snippet in snippets(report_, place)}


def test_runtimes_are_those_of_target_and_files() -> None:
    research = shown(content("research", ("transformers with the checkpoint's code",)))
    assert [*research] == ["transformers", "IntraSlice"]
    in_vllm = shown(content("research", ("x", "vLLM with the intraslice package")))
    assert "pip install --no-deps intraslice" in in_vllm["vLLM"]
    adaptive = shown(
        content("adaptive", ("x", "vLLM as DeciLM", "llama.cpp"), "safetensors", "gguf-f16")
    )
    assert "--trust-remote-code" in adaptive["vLLM"]
    assert "llama-server -m ./model-f16.gguf" in adaptive["llama.cpp"]
    stock = shown(content("stock", (), "safetensors", "gguf-f16", "gguf-q8_0"), "org/small")
    assert "trust" not in stock["vLLM"] + stock["transformers"]
    assert "vllm serve org/small" in stock["vLLM"]
    assert "org/small/model-q8_0.gguf" in stock["llama.cpp"]


@pytest.mark.parametrize(
    ("name", "directory"),
    [("Small-1B", "Small-1B"), ("a b;$(rm)", "a-b-rm"), ("..", "model"), ('"', "model")],
)
def test_directories_need_no_quotes(name: str, directory: str) -> None:
    assert directory_name(name) == directory
