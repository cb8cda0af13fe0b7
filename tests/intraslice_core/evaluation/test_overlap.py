"""Overlap of calibration and evaluation, counted in n-grams of 13 tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from intraslice_core.evaluation.overlap import NGRAM, SeenNgrams

FEW_TOKENS = st.integers(0, 1)
"""Vocabulary so small that n-grams are shared by chance."""


def ngrams(row: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row[at : at + NGRAM].tolist()) for at in range(len(row) - NGRAM + 1)]


@given(
    arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 60)), elements=FEW_TOKENS),
    arrays(np.int64, st.integers(0, 60), elements=FEW_TOKENS),
)
def test_the_fraction_equals_that_of_sets_of_tuples(calibration, evaluation):
    seen = {ngram for row in calibration for ngram in ngrams(row)}
    evaluated = ngrams(evaluation)
    expected = sum(ngram in seen for ngram in evaluated) / len(evaluated) if evaluated else 0.0
    assert SeenNgrams(calibration).fraction_of(evaluation) == pytest.approx(expected)


def test_calibration_text_overlaps_completely_and_other_text_not_at_all():
    generator = np.random.default_rng(0)
    text = generator.integers(0, 50_000, 2048)
    other = generator.integers(0, 50_000, 2048)
    seen = SeenNgrams(text.reshape(4, 512))
    assert seen.fraction_of(text[:512]) == 1.0
    assert seen.fraction_of(other) == 0.0


def test_no_ngram_crosses_two_sequences():
    text = np.arange(64)
    seen = SeenNgrams(text.reshape(2, 32))
    assert seen.fraction_of(text[32 - NGRAM + 1 : 32 + NGRAM - 1]) == 0.0
    assert seen.fraction_of(text[:32]) == 1.0


def test_neighbouring_ids_have_different_hashes():
    # A sum of ids without mixing is the same for both.
    first, second = np.full(NGRAM, 5), np.full(NGRAM, 5)
    second[3], second[4] = 4, 6
    assert SeenNgrams(first).fraction_of(second) == 0.0
    assert SeenNgrams(first).fraction_of(first[::-1].copy()) == 1.0
