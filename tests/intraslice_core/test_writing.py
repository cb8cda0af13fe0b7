"""Batches of written sequences: as few as the memory allows, equal, and long ones together."""

from __future__ import annotations

import random

import pytest

from intraslice_core import writing


def steps_of(lengths: list[int], batches: list[list[int]]) -> int:
    """Return the forward passes that write the batches: their longest sequences, one by one."""
    return sum(max(lengths[number] for number in batch) for batch in batches)


def test_batches_are_few_and_equal() -> None:
    sizes = [len(batch) for batch in writing.divide([512] * 128, lambda _: 45)]
    assert sizes == [43, 43, 42]
    assert [len(batch) for batch in writing.divide([512] * 5, lambda _: 128)] == [5]
    assert writing.divide([], lambda _: 3) == []


def test_every_sequence_is_in_one_batch_and_long_ones_come_first() -> None:
    lengths = random.Random(0).choices([64, 128, 256], k=50)
    batches = writing.divide(lengths, lambda length: 1024 // length)
    assert sorted(number for batch in batches for number in batch) == list(range(50))
    for batch in batches:
        of_batch = [lengths[number] for number in batch]
        assert of_batch == sorted(of_batch, reverse=True)
        assert len(batch) <= 1024 // of_batch[0]


def test_sixty_four_sequences_that_fit_take_the_steps_of_one() -> None:
    lengths = [2048] * 64
    sequence_bytes = 2048 * 2**17  # Llama 3 8B in bfloat16
    on_cpu = writing.sequences_at_once(sequence_bytes, writing.CPU_CACHE_BYTES, 128)
    assert steps_of(lengths, writing.divide(lengths, lambda _: on_cpu)) == 16 * 2048
    limit = writing.cache_bytes_on(24 * 2**30)
    on_gpu = writing.sequences_at_once(sequence_bytes, limit, writing.ACCELERATOR_SEQUENCES)
    assert steps_of(lengths, writing.divide(lengths, lambda _: on_gpu)) == 2048


def test_an_accelerator_keeps_memory_for_activations() -> None:
    assert writing.cache_bytes_on(80 * 2**30) == 70 * 2**30
    assert writing.cache_bytes_on(2**29) == 2**28
    assert writing.cache_bytes_on(2**27) == 0
    assert writing.sequences_at_once(10, 0, 128) == 1


@pytest.mark.parametrize("seed", range(20))
def test_steps_are_counted_without_a_list_of_the_sequences(seed: int) -> None:
    chance = random.Random(seed)
    groups = [(chance.randrange(40), length) for length in chance.sample((8, 16, 32, 64), k=3)]
    at_once = chance.choice((1, 3, 8, 100))
    lengths = [length for sequences, length in groups for _ in range(sequences)]
    # Batches that are filled one after another.
    ordered = sorted(lengths, reverse=True)
    filled = sum(ordered[begin] for begin in range(0, len(ordered), at_once))
    assert writing.count_steps(groups, lambda _: at_once) == filled
    divided = steps_of(lengths, writing.divide(lengths, lambda _: at_once))
    assert filled <= divided <= filled + max(lengths, default=0) * len(groups)


def test_equal_sequences_take_the_fewest_steps() -> None:
    for sequences in (1, 7, 64, 65):
        lengths = [32] * sequences
        steps = steps_of(lengths, writing.divide(lengths, lambda _: 8))
        assert steps == -(-sequences // 8) * 32
        assert steps == writing.count_steps([(sequences, 32)], lambda _: 8)


def test_cached_tokens_are_those_of_unfinished_sequences() -> None:
    assert writing.cached_tokens([5, 3, 3]) == [0, 3, 6, 3, 4]
    assert writing.cached_tokens([]) == []
