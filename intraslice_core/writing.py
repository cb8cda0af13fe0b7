"""Batches in which a model writes text (`self`, `chat`); imports no torch.

Every sequence of a batch advances by one token at each step: by a token that the model samples, or
by one that a prompt or a chat template dictates. An end-of-text token begins the next document of
the same sequence, so that no sequence ends before its length and no row of a batch idles. A batch
takes as many steps as its longest sequence has tokens, whatever the number of its sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

CPU_CACHE_BYTES = 2**30
"""Size limit of the KV cache on a CPU, where it may not depend on the memory that happens to be
free: batches of other sizes round differently, and runs on a CPU repeat bitwise."""
CPU_SEQUENCES = 128
"""Largest number of sequences at once on a CPU; more are hardly faster."""
ACCELERATOR_SEQUENCES = 512
"""Largest number of sequences at once on an accelerator, for which few are as slow as many."""
RESERVED_PART, RESERVED_BYTES = 0.125, 2**28
"""Free device memory that is left to activations, as a part and at least in bytes."""


def cache_bytes_on(free: int) -> int:
    """Return the size limit of the KV cache on an accelerator with `free` bytes of memory."""
    return max(free - max(int(free * RESERVED_PART), RESERVED_BYTES), 0)


def sequences_at_once(sequence_bytes: int, cache_bytes: int, most: int) -> int:
    """Return how many sequences are written at once, at least one.

    Args:
        sequence_bytes: keys and values of one sequence.
        cache_bytes: size limit of those of all sequences of a batch.
        most: largest number of sequences.
    """
    return min(max(cache_bytes // max(sequence_bytes, 1), 1), most)


def divide(lengths: Sequence[int], at_once: Callable[[int], int]) -> list[list[int]]:
    """Divide sequences into batches, as few and as equal as possible, long ones together.

    Args:
        lengths: tokens of every sequence.
        at_once: largest number of sequences in a batch whose longest has a number of tokens.

    Returns:
        Numbers of the sequences of every batch, the longest first.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches, begin = [], 0
    while begin < len(order):
        size = batch_size(len(order) - begin, at_once(lengths[order[begin]]))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


def batch_size(sequences: int, at_once: int) -> int:
    """Return the size of the first of the fewest batches, which are as equal as possible."""
    return -(-sequences // -(-sequences // at_once))


def count_steps(groups: Iterable[tuple[int, int]], at_once: Callable[[int], int]) -> int:
    """Count the steps of all batches, without listing their sequences.

    Args:
        groups: numbers of sequences, and their length.
        at_once: as in `divide`.
    """
    steps = places = 0
    for sequences, length in sorted(groups, key=lambda group: -group[1]):
        # The first of them are written beside longer ones.
        rest = max(sequences - places, 0)
        batches = -(-rest // at_once(length))
        steps += batches * length
        places += batches * at_once(length) - sequences
    return steps


def cached_tokens(lengths: Sequence[int]) -> list[int]:
    """Return the number of tokens in the cache at each step of a batch.

    Args:
        lengths: tokens of the batch's sequences; those that are shorter end before the others.
    """
    rows, ends = len(lengths), Counter(lengths)
    cached = []
    for position in range(max(lengths, default=0)):
        rows -= ends[position]
        cached.append(position * rows)
    return cached
