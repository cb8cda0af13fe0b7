"""Windows streamed to a file: their content, order, errors and the memory that they take."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from intraslice_core.calibration import stream_windows, window_stream
from intraslice_core.calibration import tokens as token_module
from intraslice_core.calibration.windows import full_windows
from intraslice_core.config import CalibrationConfig, TrainingTextConfig
from intraslice_core.errors import (
    CalibrationSourceError,
    CalibrationTooShortError,
    CalibrationUniformError,
    CompressionCancelledError,
)
from tests.intraslice_core.tiny_models import tiny_model, tiny_tokenizer

LENGTH = 16
WITH_BOS = tiny_tokenizer(adds_bos=True)


def text_file(file: Path, characters: int, alphabet: str = "abcdefgh") -> str:
    """Write random letters, one token each; return the path."""
    file.write_text("".join(random.Random(1).choices(alphabet, k=characters)))
    return str(file)


def config(source: Any, samples: int, **changes: Any) -> CalibrationConfig:
    values = {"source": source, "samples": samples, "sequence_length": LENGTH, **changes}
    return TrainingTextConfig.model_validate(values)


@pytest.mark.parametrize("shuffled", [2**23, 10 * LENGTH], ids=["all in memory", "buffer"])
def test_all_windows_of_a_text_are_used_once_in_random_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: int
) -> None:
    monkeypatch.setattr(window_stream, "SHUFFLED_TOKENS", shuffled)
    source = text_file(tmp_path / "text.txt", 100 * (LENGTH - 1))
    ids = WITH_BOS(Path(source).read_text(), add_special_tokens=False)["input_ids"]
    expected = full_windows(torch.tensor(ids), (0,), LENGTH).tolist()
    first, again, other = (
        stream_windows(config(source, 100, seed=seed), WITH_BOS, tmp_path / name).tolist()
        for seed, name in ((3, "first"), (3, "again"), (4, "other"))
    )
    assert first == again
    assert first not in (expected, other)
    assert sorted(first) == sorted(other) == sorted(expected)


def test_windows_are_chosen_from_eight_times_as_much_text(tmp_path: Path) -> None:
    source = text_file(tmp_path / "text.txt", 1000 * LENGTH)
    tokenizer = tiny_tokenizer()
    ids = tokenizer(Path(source).read_text(), add_special_tokens=False)["input_ids"]
    places = {tuple(ids[start : start + LENGTH]): start for start in range(0, len(ids), LENGTH)}
    windows = stream_windows(config(source, 20), tokenizer, tmp_path / "windows")
    starts = [places[tuple(window)] for window in windows.tolist()]
    assert len(set(starts)) == 20
    assert 80 * LENGTH < max(starts) < 160 * LENGTH


def test_sources_are_interleaved_by_their_weights(tmp_path: Path) -> None:
    sources = [
        {"source": text_file(tmp_path / "a.txt", 4000, "abcdefgh"), "weight": 2},
        {"source": text_file(tmp_path / "b.txt", 4000, "ABCDEFGH"), "weight": 1},
    ]
    windows = stream_windows(config(sources, 30), tiny_tokenizer(), tmp_path / "windows")
    upper = windows[:, 0] < min(windows[0])
    assert upper.tolist() == [False, True, False] * 10


def test_text_written_by_the_model_comes_in_batches_of_different_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_stream, "_WRITTEN_TOKENS", 4 * LENGTH)
    windows = stream_windows(config("self", 10), WITH_BOS, tmp_path / "windows", model=tiny_model())
    assert (windows.shape, windows.dtype) == ((10, LENGTH), torch.int32)
    assert windows[:, 0].tolist() == [0] * 10
    assert len({tuple(window) for window in windows.tolist()}) == 10


@pytest.mark.parametrize(
    ("text", "samples", "expected"),
    [
        ("abcdefgh" * 10, 6, CalibrationTooShortError),
        ("a" * 10_000, 8, CalibrationUniformError),
        (None, 8, CalibrationSourceError),
    ],
)
def test_unusable_text_is_an_error(
    tmp_path: Path, text: str | None, samples: int, expected: type[Exception]
) -> None:
    file = tmp_path / "text.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(expected):
        stream_windows(config(str(file), samples), tiny_tokenizer(), tmp_path / "windows")


def test_a_text_that_is_too_short_is_reported_before_the_model_writes(tmp_path: Path) -> None:
    sources = [{"source": "self"}, {"source": text_file(tmp_path / "a.txt", 40)}]
    # Without a model, writing would raise another error.
    with pytest.raises(CalibrationTooShortError):
        stream_windows(config(sources, 30), tiny_tokenizer(), tmp_path / "windows")


def test_reading_can_be_cancelled(tmp_path: Path) -> None:
    source = text_file(tmp_path / "text.txt", 4000)
    with pytest.raises(CompressionCancelledError):
        stream_windows(
            config(source, 30), tiny_tokenizer(), tmp_path / "windows", should_cancel=lambda: True
        )


def test_memory_does_not_grow_with_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_stream, "SHUFFLED_TOKENS", 2**14)
    monkeypatch.setattr(window_stream, "_COMPARED_TOKENS", 2**12)
    monkeypatch.setattr(token_module, "_CHARACTERS_AT_ONCE", 2**14)
    peaks = []
    for tokens in (2**17, 2**20):
        source = text_file(tmp_path / f"{tokens}.txt", tokens)
        settings = config(source, tokens // LENGTH)
        tracemalloc.start()
        windows = stream_windows(settings, tiny_tokenizer(), tmp_path / f"{tokens}.windows")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert windows.numel() == tokens
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 4 * 2**20  # the windows alone, in int32
