"""Greedy continuations of both models."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.config import EvaluationConfig
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.evaluation.comparison import Materials, evaluate_pair
from intraslice_core.evaluation.continuations import NEW_TOKENS, continuations
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.scoring import DenseScores
from tests.intraslice_core.tiny_models import tiny_llama, tiny_tokenizer

PROMPTS = ("one", "and another")


def test_a_continuation_is_greedy_and_excludes_the_prompt(tmp_path: Path) -> None:
    model = load_model(tiny_llama(tmp_path / "a"), dtype="float32", device="cpu")
    tokenizer = tiny_tokenizer()
    first, second = continuations(model, tokenizer, PROMPTS)
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    whole = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    assert first == tokenizer.decode(whole[len(PROMPTS[0]) :], skip_special_tokens=True)
    assert first != second


def test_generation_is_cancelled_between_prompts(tmp_path: Path) -> None:
    model = load_model(tiny_llama(tmp_path / "a"), dtype="float32", device="cpu")
    with pytest.raises(CompressionCancelledError):
        continuations(model, tiny_tokenizer(), PROMPTS, should_cancel=lambda: True)


def test_both_models_continue_each_prompt_and_the_dense_one_only_once(tmp_path: Path) -> None:
    dense, other = tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "b", seed=1)
    config = EvaluationConfig(
        perplexity=("pydoc",), max_tokens=64, context_length=32, benchmark=False, prompts=PROMPTS
    )
    cache = DenseScores()
    materials = Materials(dense_scores=cache)
    first = evaluate_pair(dense, other, config, dtype="float32", materials=materials).continuations
    assert [pair.prompt for pair in first] == list(PROMPTS)
    assert all(pair.dense != pair.compressed for pair in first)
    assert cache.scores is not None
    assert cache.scores.continuations == tuple(pair.dense for pair in first)
    second = evaluate_pair(dense, dense, config, dtype="float32", materials=materials).continuations
    assert [pair.dense for pair in second] == [pair.compressed for pair in second]
