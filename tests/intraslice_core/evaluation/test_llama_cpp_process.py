"""Settings of the llama.cpp server that verifies GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.evaluation.llama_cpp_process import threads_for


@pytest.mark.parametrize(("size", "threads"), [(63_999_999, 1), (64_000_000, None)])
def test_small_files_are_served_by_one_thread(
    size: int, threads: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    with file.open("wb") as stream:
        stream.truncate(size)
    assert threads_for(str(file)) == threads
