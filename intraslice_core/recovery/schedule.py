"""The learning rate over a training whose length the clock may decide."""

from __future__ import annotations

import math

WARM_UP = 0.05
"""Part of the training until the peak."""


def learning_rate_factor(done: float) -> float:
    """Part of the peak rate, rising evenly and then falling as a cosine to nothing.

    A function of what is done of the nearer bound, tokens or time, and of nothing else: a
    training that the clock will end cools down as well, and there is no state to keep.

    Args:
        done: part of the training behind the middle of a step, in [0, 1].
    """
    if done < WARM_UP:
        return done / WARM_UP
    falling = (min(done, 1.0) - WARM_UP) / (1.0 - WARM_UP)
    return 0.5 * (1.0 + math.cos(math.pi * falling))
