"""Has the calibration seen the text that the result is scored on?

Counted as the field counts contamination: by runs of 13 tokens, which two texts seldom share by
chance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NGRAM = 13
"""Tokens of a run, as in the reports on GPT-3 and in lm-evaluation-harness."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no token of a run is multiplied away modulo 2^64."""

Tokens = npt.NDArray[np.int64]
_Hashes = npt.NDArray[np.uint64]


class SeenNgrams:
    """The runs of a calibration's sequences, as 64-bit hashes in order.

    Keeps 8 bytes a calibration token. Two different runs among 10^9 pairs have the same hash with
    a probability of 10^-10, which no fraction shows.

    Args:
        sequences: (samples, length), int64; a run does not cross from one into the next.
    """

    def __init__(self, sequences: Tokens) -> None:
        self._hashes = np.unique(_hashed(np.atleast_2d(sequences)))

    def fraction_of(self, tokens: Tokens) -> float:
        """The part of a text's runs that are among them; 0 for a text shorter than a run.

        Args:
            tokens: (n,), int64.

        Returns:
            A fraction in [0, 1].
        """
        asked = _hashed(np.atleast_2d(tokens))
        if not len(asked) or not len(self._hashes):
            return 0.0
        places = np.searchsorted(self._hashes, asked)
        found = self._hashes[np.minimum(places, len(self._hashes) - 1)] == asked
        return float(found.mean())


def _hashed(sequences: Tokens) -> _Hashes:
    """A polynomial of every run's mixed tokens, modulo 2^64: (runs of all sequences,)."""
    samples, length = sequences.shape
    runs = length - NGRAM + 1
    if runs < 1:
        return np.empty(0, dtype=np.uint64)
    mixed = _mixed(sequences.astype(np.uint64))
    hashes = np.zeros((samples, runs), dtype=np.uint64)
    for offset in range(NGRAM):
        hashes *= _BASE
        hashes += mixed[:, offset : offset + runs]
    return hashes.ravel()


def _mixed(tokens: _Hashes) -> _Hashes:
    """The finaliser of splitmix64: ids near each other must not give sums near each other."""
    mixed = (tokens ^ (tokens >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
