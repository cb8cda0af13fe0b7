"""Calibration on a mixture of several sources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from intraslice_core.calibration import (
    calibration_hash,
    calibration_tokens,
    interleave,
    sequence_sources,
)
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.content_key import calibration_facts
from intraslice_core.errors import CalibrationTooShortError
from intraslice_core.hidden_states import HELD_OUT_FRACTION
from tests.intraslice_core.tiny_models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FIRST_BYTE = 3
"""Token of the tokenizer's first byte."""


def mixture(*sources: tuple[str, float], **settings: Any) -> CalibrationConfig:
    parts = [{"source": source, "weight": weight} for source, weight in sources]
    values = {"samples": 16, "sequence_length": 16, **settings}
    return CalibrationConfig.model_validate({"source": parts, **values})


def letters(directory: Path, letter: str, count: int) -> str:
    """Write a file of one repeated letter, one token each, and return its path."""
    file = directory / f"{letter}.txt"
    file.write_text(letter * count)
    return str(file)


def shares(config: CalibrationConfig) -> list[int]:
    return [part.samples for part in config.parts()]


@pytest.mark.parametrize(
    ("weights", "samples", "expected"),
    [
        ((1, 1), 16, [8, 8]),
        ((2, 1), 128, [85, 43]),
        ((1, 1, 1), 128, [43, 43, 42]),
        ((0.5, 0.25, 0.25), 10, [5, 3, 2]),
        ((3,), 7, [7]),
        ((1e-6, 1e-6), 3, [2, 1]),
    ],
)
def test_sequences_are_divided_by_weight_and_largest_remainder(weights, samples, expected):
    sources = [(f"s{index}", weight) for index, weight in enumerate(weights)]
    assert shares(mixture(*sources, samples=samples)) == expected


@given(
    st.lists(st.floats(0.01, 100.0), min_size=1, max_size=6),
    st.integers(min_value=60_000, max_value=65_536),
)
def test_every_share_is_the_exact_share_rounded(weights, samples):
    counts = shares(mixture(*((f"s{i}", w) for i, w in enumerate(weights)), samples=samples))
    assert sum(counts) == samples
    for share, weight in zip(counts, weights, strict=True):
        assert abs(share - samples * weight / math.fsum(weights)) < 1 + 1e-6


def labelled(counts: list[int]) -> list[Tensor]:
    """Return sequences of one token that encodes their part and their position in it."""
    return [
        torch.tensor([[1000 * part + row] for row in range(count)])
        for part, count in enumerate(counts)
    ]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_every_beginning_and_every_end_contains_each_part_in_proportion(counts):
    mixed = interleave(labelled(counts))
    total = sum(counts)
    assert sorted(mixed.flatten().tolist()) == sorted(
        torch.cat(labelled(counts)).flatten().tolist()
    )
    for part, count in enumerate(counts):
        is_of_part = (mixed.flatten() // 1000 == part).long()
        assert torch.equal(mixed.flatten()[is_of_part.bool()] % 1000, torch.arange(count))
        cumulative = is_of_part.cumsum(0)
        expected = torch.arange(1, total + 1) * count / total
        slack = 0.5 + len(counts) / 2 * count / total
        assert (cumulative - expected).abs().max() <= slack + 1e-6


def test_sequences_that_choose_the_damping_contain_every_source(tmp_path):
    config = mixture(
        (letters(tmp_path, "a", 16 * 200), 6),
        (letters(tmp_path, "b", 16 * 200), 1),
        ("self", 1),
        samples=64,
    )
    tokens = calibration_tokens(config, TOKENIZER, model=tiny_model())
    assert tokens.shape == (64, 16)
    a, b = (TOKENIZER(letter)["input_ids"][0] for letter in "ab")

    def counts(rows: Tensor) -> list[int]:
        whole = [int((rows == letter).all(dim=1).sum()) for letter in (a, b)]
        return [*whole, int((rows[:, 0] == TOKENIZER.bos_token_id).sum())]

    assert counts(tokens) == [48, 8, 8]
    assert counts(tokens[-(64 // HELD_OUT_FRACTION) :]) == [6, 1, 1]


def test_list_of_one_source_equals_the_source():
    alone = CalibrationConfig(source="pydoc", samples=4, sequence_length=16)
    listed = mixture(("pydoc", 5), samples=4)
    assert calibration_hash(calibration_tokens(alone, TOKENIZER)) == calibration_hash(
        calibration_tokens(listed, TOKENIZER)
    )


def test_default_mixture_supports_few_sequences():
    whole = [(part.source, part.samples) for part in CalibrationConfig(samples=8).parts()]
    assert whole == [("pydoc", 2), ("pycode", 2), ("chat", 2), ("self", 1), ("web", 1)]
    assert [part.source for part in CalibrationConfig(samples=2).parts()] == ["pydoc", "pycode"]
    tokens = calibration_tokens(CalibrationConfig(samples=2, sequence_length=16), TOKENIZER)
    assert tokens.shape == (2, 16)
    restored = CalibrationConfig.model_validate_json(CalibrationConfig().model_dump_json())
    assert restored == CalibrationConfig()


def test_half_of_the_default_mixture_without_web_text_is_self_written():
    offline = CompressionConfig(calibration=CalibrationConfig(samples=24)).without_web()
    parts = [(part.source, part.samples) for part in offline.calibration.parts()]
    assert parts == [("pydoc", 4), ("pycode", 4), ("chat", 4), ("self", 12)]


@pytest.mark.parametrize(
    ("share", "samples", "expected"),
    [(0.25, 16, [12, 4]), (0.25, 3, [3]), (0.5, 5, [3, 2]), (0.0, 4, [4]), (0.9, 2, [1, 1])],
)
def test_a_share_of_the_sequences_is_written_by_the_model(share, samples, expected):
    config = CalibrationConfig(source="pydoc", samples=samples, self_share=share)
    assert shares(config) == expected
    assert [part.source for part in config.parts()] == ["pydoc", "self"][: len(expected)]
    assert sequence_sources(config).bincount().tolist() == expected


def test_given_sources_come_before_the_text_of_the_model():
    config = mixture(("pydoc", 1), ("pycode", 1), samples=2, self_share=0.5)
    assert [part.source for part in config.parts()] == ["pydoc", "pycode"]
    config = mixture(("pydoc", 3), ("pycode", 1), samples=16, self_share=0.25)
    assert shares(config) == [9, 3, 4]


@pytest.mark.parametrize(
    ("method", "source", "share"),
    [
        ("intraslice_plus", "pydoc", 0.25),
        ("intraslice", "pydoc", 0.0),
        ("magnitude", "pydoc", 0.0),
        ("intraslice_plus", "self", 0.0),
        ("intraslice_plus", CalibrationConfig().source, 0.0),
    ],
)
def test_the_default_share_depends_on_the_method_and_the_sources(method, source, share):
    config = CompressionConfig(method=method, calibration=CalibrationConfig(source=source))
    assert config.calibration.self_share is None
    assert config.resolved_calibration.self_share == share


def test_a_share_beside_self_is_rejected():
    with pytest.raises(ValidationError, match="contain `self` already"):
        CalibrationConfig(source="self", self_share=0.5)


def test_the_model_writes_its_share_of_the_sequences():
    config = CalibrationConfig(source="pydoc", samples=8, sequence_length=16, self_share=0.25)
    model = tiny_model()
    tokens = calibration_tokens(config, TOKENIZER, model=model)
    alone = [CalibrationConfig(**part.model_dump()) for part in config.parts()]
    text, own = (calibration_tokens(part, TOKENIZER, model=model) for part in alone)
    rows = sequence_sources(config)
    assert torch.equal(tokens[rows == 0], text)
    assert torch.equal(tokens[rows == 1], own)


def test_a_model_without_a_first_token_gets_the_given_text_alone():
    tokenizer, model, warnings = tiny_tokenizer(), tiny_model(), []
    tokenizer.bos_token = tokenizer.eos_token = None
    model.config.bos_token_id = None
    config = CalibrationConfig(source="pydoc", samples=8, sequence_length=16, self_share=0.25)
    tokens = calibration_tokens(config, tokenizer, model=model, warnings=warnings)
    given = config.model_copy(update={"self_share": 0.0})
    assert torch.equal(tokens, calibration_tokens(given, tokenizer))
    assert "no self-written text" in warnings[0]


def test_mixture_contains_the_sequences_of_its_sources_and_is_repeatable():
    config = mixture(("pydoc", 1), ("pycode", 1), ("self", 1), samples=12, seed=5)
    model = tiny_model()
    tokens = calibration_tokens(config, TOKENIZER, model=lambda: model)
    assert torch.equal(tokens, calibration_tokens(config, TOKENIZER, model=model))
    rows = {tuple(row) for row in tokens.tolist()}
    assert len(rows) == 12
    for part in config.parts():
        single = CalibrationConfig(**part.model_dump())
        alone = calibration_tokens(single, TOKENIZER, model=model)
        assert {tuple(row) for row in alone.tolist()} <= rows


def test_model_is_loaded_once_and_only_after_all_texts_were_read(tmp_path):
    loaded = []

    def load() -> Any:
        loaded.append(1)
        return tiny_model()

    sources = (("self", 1.0), ("chat", 1.0), (letters(tmp_path, "a", 16), 1.0))
    with pytest.raises(CalibrationTooShortError):
        calibration_tokens(mixture(*sources), TOKENIZER, model=load)
    assert loaded == []
    calibration_tokens(mixture(*sources[:2]), TOKENIZER, model=load)
    assert loaded == [1]


def test_too_short_source_is_named_with_the_possible_number_of_sequences(tmp_path):
    short = letters(tmp_path, "a", 16 * 3 + 5)
    with pytest.raises(CalibrationTooShortError) as caught:
        calibration_tokens(mixture(("pydoc", 1), (short, 1)), TOKENIZER)
    message = str(caught.value)
    assert f"{short} contains 53 tokens, but 8 sequences of 16 need 128" in message
    assert "at most 3 sequences" in message
    assert "pydoc" not in message


@pytest.mark.parametrize(
    ("source", "location", "message"),
    [
        ([{"source": "pydoc", "weight": 0}], ("source", 0, "weight"), "greater than 0"),
        ([{"source": "pydoc", "weight": -1}], ("source", 0, "weight"), "greater than 0"),
        ([{"source": "pydoc", "weight": math.nan}], ("source", 0, "weight"), "less than or equal"),
        ([{"source": "pydoc", "weight": math.inf}], ("source", 0, "weight"), "less than or equal"),
        ([{"source": "pydoc", "share": 1}], ("source", 0, "share"), "not permitted"),
        ([{"source": "a"}, {"source": "a"}], ("source",), "sources 1 and 2 are the same"),
        (
            [{"source": "a", "weight": 1e-6}, {"source": "b"}],
            ("samples",),
            "of 128 sequences source 1 gets none",
        ),
        ([{"source": str(index)} for index in range(17)], ("source",), "at most 16"),
        ([], ("source",), "at least 1"),
        (["pydoc"], ("source", 0), "WeightedSource"),
        (3, ("source",), "a name, or a list"),
    ],
)
def test_invalid_mixture_is_reported_at_its_location(source, location, message):
    with pytest.raises(ValidationError) as caught:
        CalibrationConfig.model_validate({"source": source})
    first = caught.value.errors()[0]
    assert first["loc"] == location
    assert message in first["msg"]


def test_mixture_is_restored_from_json():
    config = mixture(("pydoc", 2), ("upload:upl_1", 0.1))
    assert CalibrationConfig.model_validate_json(config.model_dump_json()) == config
    assert CalibrationConfig(source="pydoc").model_dump()["source"] == "pydoc"


def test_changed_file_in_a_mixture_changes_the_calibration(tmp_path):
    config = mixture(("pydoc", 1), (letters(tmp_path, "a", 100), 1))
    before = calibration_facts(config)
    assert calibration_facts(config) == before
    letters(tmp_path, "a", 101)
    assert calibration_facts(config) != before
