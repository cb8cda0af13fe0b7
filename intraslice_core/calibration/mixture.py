"""Sequences of several sources in one order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """All sequences, those of each part in their order and evenly spread over the whole.

    What chooses the damping is the end, and a look ahead is the beginning: either holds of every
    part its share, give or take one.

    Args:
        parts: (samples, sequence_length) each, of one length.

    Returns:
        (sum of samples, sequence_length).
    """
    # The place of a sequence is the middle of its slot; equal places go by the order of the parts.
    places = sorted(
        ((2 * row + 1) / (2 * len(part)), index, row)
        for index, part in enumerate(parts)
        for row in range(len(part))
    )
    return torch.stack([parts[index][row] for _, index, row in places])
