"""Overlap of the calibration text with the evaluation text.

Overlap is counted as contamination usually is: by n-grams of 13 tokens, which two texts seldom
share by chance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NGRAM = 13
"""Tokens per n-gram, as in the report on GPT-3 and in lm-evaluation-harness."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Base of the polynomial hash; odd, so that no token is multiplied away modulo 2^64."""

Tokens = npt.NDArray[np.int64]
_Hashes = npt.NDArray[np.uint64]


class SeenNgrams:
    """N-grams of the calibration sequences, as sorted 64-bit hashes.

    Needs 8 bytes per calibration token. Among 10^9 pairs of different n-grams, a hash collision has
    a probability of 10^-10, which is invisible in the fraction.

    Args:
        sequences: (samples, length), int64; n-grams do not cross sequences.
    """

    def __init__(self, sequences: Tokens) -> None:
        self._hashes = np.unique(_hash_ngrams(np.atleast_2d(sequences)))

    def fraction_of(self, tokens: Tokens) -> float:
        """Return the fraction of a text's n-grams that calibration has seen.

        Args:
            tokens: (n,), int64.

        Returns:
            A fraction in [0, 1]; 0 for a text shorter than an n-gram.
        """
        hashes = _hash_ngrams(np.atleast_2d(tokens))
        if not len(hashes) or not len(self._hashes):
            return 0.0
        indices = np.searchsorted(self._hashes, hashes)
        is_seen = self._hashes[np.minimum(indices, len(self._hashes) - 1)] == hashes
        return float(is_seen.mean())


def _hash_ngrams(sequences: Tokens) -> _Hashes:
    """Hash every n-gram with a polynomial of its mixed tokens modulo 2^64: (all n-grams,)."""
    samples, length = sequences.shape
    ngrams = length - NGRAM + 1
    if ngrams < 1:
        return np.empty(0, dtype=np.uint64)
    mixed = _mix(sequences.astype(np.uint64))
    hashes = np.zeros((samples, ngrams), dtype=np.uint64)
    for offset in range(NGRAM):
        hashes *= _BASE
        hashes += mixed[:, offset : offset + ngrams]
    return hashes.ravel()


def _mix(tokens: _Hashes) -> _Hashes:
    """Apply the finaliser of splitmix64, so that neighbouring ids do not give neighbouring sums."""
    mixed = (tokens ^ (tokens >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
