"""Runs at several ratios share statistics that do not depend on the ratio, with equal results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from intraslice_core import decoder_layer, pipeline, run_texts
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.content_key import calibration_facts, fingerprint
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.progress import (
    CancellationCheck,
    ProgressEvent,
    ProgressListener,
    Stage,
    ignore_progress,
    never_cancelled,
)
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.run import OpenedModel, Run
from intraslice_core.statistics_cache import ModelStatistics, StatisticsCache
from tests.intraslice_core.tiny_models import tiny_checkpoint, tiny_llama

LAYERS = 3
PLENTY = 2**30


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sharing") / "dense")


def config(ratio: float, source: str = "self", **changes: Any) -> CompressionConfig:
    calibration = CalibrationConfig(source=source, samples=16, sequence_length=32)
    settings = {"round_to": 2, "dtype": "float32"} | changes
    return CompressionConfig(ratio=ratio, calibration=calibration, **settings)


def compress(
    dense: Path,
    out: Path,
    config: CompressionConfig,
    statistics_cache: StatisticsCache | None = None,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> CompressionReport:
    """Run the stages that use the cache, without verification, which takes another process."""
    run = Run(
        on_progress=on_progress, should_cancel=should_cancel, statistics_cache=statistics_cache
    )
    return pipeline._compress_checkpoint(
        OpenedModel(reference=str(dense), directory=dense), out, config, run
    )


def files_of(checkpoint: Path) -> dict[str, str]:
    return {
        str(file.relative_to(checkpoint)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in checkpoint.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record of the calls that the cache is meant to save."""
    done: list[str] = []
    attention, tokens = decoder_layer.attention, run_texts.calibration_tokens

    def counted_attention(*arguments: object) -> torch.Tensor:
        done.append("attention")
        return attention(*arguments)  # type: ignore[arg-type]

    def counted_tokens(*arguments: object, **named: object) -> torch.Tensor:
        done.append("tokens")
        return tokens(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder_layer, "attention", counted_attention)
    monkeypatch.setattr(run_texts, "calibration_tokens", counted_tokens)
    return done


def test_a_run_with_the_cache_gives_the_same_bytes_with_less_work(
    dense: Path, tmp_path: Path, work: list[str]
) -> None:
    # Trial compressions depend on the ratio and cannot be shared: a uniform allocation needs none.
    ratios = {ratio: config(ratio, allocation="uniform") for ratio in (0.2, 0.4)}
    alone = compress(dense, tmp_path / "alone", ratios[0.4])
    work_alone = list(work)
    work.clear()

    first = StatisticsCache(directory=tmp_path / "shared", max_bytes=PLENTY)
    compress(dense, tmp_path / "first", ratios[0.2], statistics_cache=first)
    assert (first.hits, first.misses) == (0, 1 + 2 * LAYERS)
    assert work == work_alone
    work.clear()

    second = StatisticsCache(directory=tmp_path / "shared", max_bytes=PLENTY)
    together = compress(dense, tmp_path / "second", ratios[0.4], statistics_cache=second)
    assert (second.hits, second.misses) == (1 + 2 * LAYERS, 0)
    assert files_of(tmp_path / "second") == files_of(tmp_path / "alone")
    assert together.calibration_hash == alone.calibration_hash
    assert [layer.mlp for layer in together.layers] == [layer.mlp for layer in alone.layers]
    # Alone, each layer computes attention on the compressed and on the dense hidden states. Shared,
    # only the former is left, and the sensitivity is not measured again.
    assert "tokens" not in work
    assert 2 * work.count("attention") < work_alone.count("attention")


@pytest.mark.parametrize(("variant", "states_per_layer"), [("phi", 1), ("gemma2", 0)])
def test_runs_of_every_layer_structure_share_and_give_the_same_bytes(
    tmp_path: Path, variant: str, states_per_layer: int
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    compress(dense, tmp_path / "alone", config(0.4, "pydoc"))
    for name, ratio in (("first", 0.2), ("second", 0.4)):
        files = StatisticsCache(directory=tmp_path / "shared", max_bytes=PLENTY)
        compress(dense, tmp_path / name, config(ratio, "pydoc"), statistics_cache=files)
    # Both modules of a parallel layer read the same input, so it saves one state instead of two.
    # Modules behind output norms have no dense target: such runs share the sensitivity alone.
    assert files.hits == 1 + LAYERS * states_per_layer
    assert files_of(tmp_path / "second") == files_of(tmp_path / "alone")


def test_statistics_beyond_the_size_limit_are_computed_again(dense: Path, tmp_path: Path) -> None:
    states = 16 * 32 * 48 * 4
    for name, ratio in (("first", 0.2), ("second", 0.4)):
        files = StatisticsCache(directory=tmp_path / "shared", max_bytes=3 * states)
        compress(dense, tmp_path / name, config(ratio), statistics_cache=files)
    assert 0 < files.hits < 1 + 2 * LAYERS
    assert sum(file.stat().st_size for file in files.directory.iterdir()) <= 3 * states
    compress(dense, tmp_path / "alone", config(0.4))
    assert files_of(tmp_path / "second") == files_of(tmp_path / "alone")


def test_a_cancelled_run_leaves_only_complete_files(dense: Path, tmp_path: Path) -> None:
    reached: list[ProgressEvent] = []

    def in_second_layer() -> bool:
        return any(event.stage is Stage.COMPRESS and event.layer == 1 for event in reached)

    files = StatisticsCache(directory=tmp_path / "shared", max_bytes=PLENTY)
    with pytest.raises(CompressionCancelledError):
        compress(
            dense,
            tmp_path / "stopped",
            config(0.2),
            statistics_cache=files,
            on_progress=reached.append,
            should_cancel=in_second_layer,
        )
    saved = [file.name for file in files.directory.iterdir()]
    assert len(saved) == 4  # tokens, sensitivity, the hidden states after both modules of a layer
    assert all(name.endswith(".safetensors") for name in saved)
    again = StatisticsCache(directory=files.directory, max_bytes=PLENTY)
    compress(dense, tmp_path / "second", config(0.4), statistics_cache=again)
    assert again.hits == 3
    compress(dense, tmp_path / "alone", config(0.4))
    assert files_of(tmp_path / "second") == files_of(tmp_path / "alone")


@pytest.mark.parametrize(
    ("change", "hits"),
    [
        ({"batch_size": 3}, 1),  # equal tokens, but hidden states of other batches
        ({"dtype": "bfloat16"}, 0),
        ({"source": "pydoc"}, 0),
    ],
)
def test_runs_with_other_settings_share_only_equal_statistics(
    dense: Path, tmp_path: Path, change: dict[str, Any], hits: int
) -> None:
    for name, changes in (("first", {}), ("second", change)):
        files = StatisticsCache(directory=tmp_path / "shared", max_bytes=PLENTY)
        settings = config(0.2, **changes)
        compress(dense, tmp_path / name, settings, statistics_cache=files)
    assert files.hits == hits


def test_another_model_shares_nothing(dense: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", seed=1)
    assert fingerprint(other) != fingerprint(dense)
    files = StatisticsCache(directory=tmp_path / "shared", max_bytes=PLENTY)
    calibration = calibration_facts(config(0.2).calibration)
    tokens = torch.arange(4)
    for model, expected in ((dense, 0), (other, 1), (dense, 0)):
        made = torch.full((4,), expected)
        statistics = ModelStatistics.of(files, model)
        shared = statistics.tokens(calibration, lambda _, made=made: made, [])  # type: ignore[misc]
        assert torch.equal(shared, torch.full_like(tokens, expected))


def test_warnings_about_a_text_are_shared_with_its_tokens(tmp_path: Path) -> None:
    def read(warnings: list[str]) -> torch.Tensor:
        warnings.append("a record was skipped")
        return torch.arange(4)

    files = StatisticsCache(directory=tmp_path, max_bytes=PLENTY)
    statistics = ModelStatistics(cache=files, facts={})
    for _ in range(2):
        warnings = ["before"]
        statistics.tokens({}, read, warnings)
        assert warnings == ["before", "a record was skipped"]
    assert (files.hits, files.misses) == (1, 1)


def test_damaged_files_are_replaced(tmp_path: Path) -> None:
    files = StatisticsCache(directory=tmp_path, max_bytes=PLENTY)
    files.save("a", torch.ones(8))
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-3])
    assert files.load("a") is None
    files.save("a", torch.ones(8))
    restored = files.load("a")
    assert restored is not None
    assert torch.equal(restored, torch.ones(8))
