"""Greedy continuations, by each model's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.config import EvaluationConfig
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.evaluation.comparison import DenseScores, Materials, evaluate_pair
from intraslice_core.evaluation.continuations import NEW_TOKENS, continuations
from intraslice_core.evaluation.loaded_models import load_model
from tests.intraslice_core.tiny_models import tiny_llama, tiny_tokenizer

PROMPTS = ("one", "and another")


def test_a_model_goes_on_greedily_without_the_prompt(tmp_path: Path) -> None:
    model = load_model(tiny_llama(tmp_path / "a"), dtype="float32", device="cpu")
    tokenizer = tiny_tokenizer()
    first, second = continuations(model, tokenizer, PROMPTS)
    given = tokenizer(PROMPTS[0], return_tensors="pt")
    whole = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    assert first == tokenizer.decode(whole[len(PROMPTS[0]) :], skip_special_tokens=True)
    assert first != second


def test_it_stops_between_prompts(tmp_path: Path) -> None:
    model = load_model(tiny_llama(tmp_path / "a"), dtype="float32", device="cpu")
    with pytest.raises(CompressionCancelledError):
        continuations(model, tiny_tokenizer(), PROMPTS, should_cancel=lambda: True)


def test_both_models_stand_side_by_side_and_the_dense_one_is_asked_once(tmp_path: Path) -> None:
    dense, other = tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "b", seed=1)
    config = EvaluationConfig(
        perplexity=("pydoc",), max_tokens=64, context_length=32, benchmark=False, prompts=PROMPTS
    )
    known = DenseScores()
    materials = Materials(known=known)
    found = evaluate_pair(dense, other, config, dtype="float32", materials=materials).continuations
    assert [one.prompt for one in found] == list(PROMPTS)
    assert all(one.dense != one.compressed for one in found)
    assert known.continuations == tuple(one.dense for one in found)
    again = evaluate_pair(dense, dense, config, dtype="float32", materials=materials).continuations
    assert [one.dense for one in again] == [one.compressed for one in again]
