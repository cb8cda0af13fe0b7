"""Measurements of benchmarks are taken once, and resume after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import measurements
from benchmarks.measurements import Measurement, Measurements, MethodVariant
from intraslice_core.config import EvaluationConfig
from tests.intraslice_core.tiny_models import tiny_llama

CALIBRATION = {"source": "pydoc", "samples": 4, "sequence_length": 16}


@pytest.mark.parametrize(
    ("text", "method", "allocation", "self_share"),
    [
        ("magnitude", "magnitude", "auto", 0.0),
        ("intraslice:fisher", "intraslice", "fisher", 0.0),
        ("intraslice:fisher_pca+self", "intraslice", "fisher_pca", 0.25),
        ("intraslice_plus", "intraslice_plus", "auto", 0.25),
    ],
)
def test_a_variant_names_method_allocation_and_text(text, method, allocation, self_share):
    config = MethodVariant.parse(text).config(0.3, CALIBRATION)
    assert (config.method, config.allocation) == (method, allocation)
    assert config.resolved_calibration.self_share == self_share


def test_a_variant_trains_masks_on_the_tokens_that_it_names():
    assert MethodVariant.parse("disp").config(0.3, CALIBRATION).mask_training is None
    both = MethodVariant.parse("spp+self+masks=4096").config(0.3, CALIBRATION)
    assert both.mask_training is not None
    assert both.mask_training.max_tokens == 4096
    assert both.calibration.self_share == 0.25


@pytest.mark.parametrize(
    "text", ["wanda", "intraslice:best", "intraslice+chat", "spp+masks", "spp+masks=many"]
)
def test_an_unknown_variant_is_an_error(text):
    with pytest.raises(ValueError, match="unknown"):
        MethodVariant.parse(text)


def test_masks_trained_on_no_tokens_are_an_error():
    with pytest.raises(ValueError, match="max_tokens"):
        MethodVariant.parse("disp+masks=0")


def bench(model: Path, directory: Path, max_tokens: int = 128) -> Measurements:
    evaluation = EvaluationConfig(
        perplexity=("pydoc",), max_tokens=max_tokens, context_length=32, benchmark=False
    )
    return Measurements(
        model=model, evaluation=evaluation, directory=directory, console=Console(quiet=True)
    )


def measure(bench: Measurements, ratio: float = 0.3) -> Measurement:
    variant = MethodVariant.parse("magnitude")
    return bench.measure(variant.config(ratio, CALIBRATION), "magnitude")


def test_a_measurement_is_taken_once_and_resumes_where_it_was_interrupted(tmp_path, monkeypatch):
    model, state = tiny_llama(tmp_path / "dense"), tmp_path / "state"
    compressions: list[Path] = []
    compress, evaluate = measurements.compress_model, measurements.evaluate_pair

    def counting(model: str, out: Path, *arguments: Any, **named: Any) -> Any:
        compressions.append(out)
        return compress(model, out, *arguments, **named)

    def interrupted(*_arguments: Any, **_named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(measurements, "compress_model", counting)
    monkeypatch.setattr(measurements, "evaluate_pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(bench(model, state))
    monkeypatch.setattr(measurements, "evaluate_pair", evaluate)
    first = measure(bench(model, state))
    assert len(compressions) == 1
    assert not list((state / "unfinished").iterdir())
    assert measure(bench(model, state)) == first
    assert len(compressions) == 1
    assert first.perplexity[0].kl is not None
    assert 0.0 < first.kept_attention() < 1.0

    measure(bench(model, state), ratio=0.2)
    measure(bench(model, state, max_tokens=64))
    monkeypatch.setattr(measurements, "engine_digest", lambda: "another engine")
    measure(bench(model, state))
    assert len(compressions) == 4


def test_a_mixture_with_self_written_text_gets_no_more_of_it():
    mixture = {**CALIBRATION, "source": [{"source": "self"}, {"source": "pydoc"}]}
    assert MethodVariant.parse("intraslice+self").config(0.3, mixture).calibration.self_share == 0.0
