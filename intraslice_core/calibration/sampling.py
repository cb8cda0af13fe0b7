"""Sampling of the next tokens, with a stream of random numbers for every sequence.

What a sequence samples follows from its own logits and its own stream, not from the other sequences
of its batch or from its place among them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intraslice_core.errors import NumericalError

TEMPERATURE = 1.0
TOP_K = 50


def random_numbers(seed: int, index: int, length: int) -> NDArray[np.float64]:
    """Return the random numbers of a sequence, (length,), uniform in [0, 1), one per position.

    Args:
        seed: of the text.
        index: number of the sequence in it.
        length: positions of the sequence.
    """
    return np.random.default_rng((seed, index)).random(length)


def sample(logits: Tensor, uniforms: NDArray[np.float64], top_k: int = TOP_K) -> list[int]:
    """Sample one of the `top_k` likeliest tokens of every row by the inverse of their distribution.

    The distribution function is summed in the order of token ids, in float64 on the host. A small
    difference of the logits then moves its steps by little, whichever token is the likeliest.

    Args:
        logits: (rows, vocabulary), on any device; the only transfer is that of the candidates.
        uniforms: random number of each row in [0, 1), (rows,).
        top_k: number of candidates; 1 is greedy.

    Raises:
        NumericalError: if a logit is NaN or infinite.
    """
    values, tokens = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    values, tokens = values.cpu().double(), tokens.cpu()
    # NaN counts as the largest number.
    if not torch.isfinite(values).all():
        raise NumericalError("the logits of the text that the model writes are not finite")
    tokens, order = tokens.sort(dim=-1)
    weights = torch.softmax(values.gather(-1, order) / TEMPERATURE, dim=-1)
    sums = weights.cumsum(-1)
    thresholds = torch.from_numpy(uniforms).unsqueeze(-1) * sums[:, -1:]
    chosen = torch.searchsorted(sums, thresholds, right=True)
    sampled: list[int] = tokens.gather(-1, chosen.clamp_max(tokens.shape[-1] - 1))[:, 0].tolist()
    return sampled
