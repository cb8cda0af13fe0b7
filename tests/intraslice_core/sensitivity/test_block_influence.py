"""Block influence against its definition, in any batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intraslice_core.errors import NumericalError
from intraslice_core.sensitivity.block_influence import (
    InfluenceAccumulator,
    load_block_influence,
    save_block_influence,
)


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(5, 6, 8, generator=generator)
    return before, before + 0.5 * torch.randn(5, 6, 8, generator=generator)


@pytest.mark.parametrize("pieces", [1, 5])
@pytest.mark.parametrize("prefix_length", [0, 2])
def test_influence_is_one_minus_the_mean_cosine_of_the_text(
    pieces: int, prefix_length: int
) -> None:
    before, after = drawn()
    accumulator = InfluenceAccumulator(prefix_length)
    for first, second in zip(before.split(pieces), after.split(pieces), strict=True):
        accumulator.add(first, second)
    cosines = []
    for sequence in range(5):
        for position in range(prefix_length, 6):
            x, y = before[sequence, position].double(), after[sequence, position].double()
            cosines.append(float(x @ y) / float((x @ x) * (y @ y)) ** 0.5)
    assert accumulator.influence() == pytest.approx(1.0 - sum(cosines) / len(cosines), abs=1e-6)


def test_a_layer_that_only_scales_has_no_influence_and_one_that_negates_two() -> None:
    before, _ = drawn()
    for factor, influence in ((3.0, 0.0), (-1.0, 2.0)):
        accumulator = InfluenceAccumulator()
        accumulator.add(before, factor * before)
        assert accumulator.influence() == pytest.approx(influence, abs=1e-6)


def test_no_tokens_and_nan_are_errors() -> None:
    with pytest.raises(NumericalError, match="no tokens"):
        InfluenceAccumulator().influence()
    before, after = drawn()
    after[1, 3, 2] = torch.nan
    accumulator = InfluenceAccumulator()
    accumulator.add(before, after)
    with pytest.raises(NumericalError, match="NaN"):
        accumulator.influence()


def test_cached_influences_are_exact_and_damaged_files_are_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "influence.safetensors"
    assert load_block_influence(file) is None
    save_block_influence(file, (0.1, 1.0 / 3.0))
    assert load_block_influence(file) == (0.1, 1.0 / 3.0)
    file.write_bytes(b"damaged")
    assert load_block_influence(file) is None
