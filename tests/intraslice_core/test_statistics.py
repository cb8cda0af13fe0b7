"""Streamed moments do not depend on the split into batches (docs/method.md, section 7)."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.errors import NumericalError
from intraslice_core.rotary_statistics import HeadEnergyAccumulator, RotaryAccumulator
from intraslice_core.statistics import MomentAccumulator, prefix_scale, scaled

CPU = torch.device("cpu")
NO_OUTPUT = torch.empty(0)
"""Output projection for accumulators that do not use it (`own_is_linear` is false)."""


def accumulate(pieces: int, dtype: torch.dtype = torch.float32) -> MomentAccumulator:
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(210, 12, generator=generator).to(dtype)
    own = torch.randn(210, 5, generator=generator).to(dtype)
    correction = torch.randn(210, 5, generator=generator).to(dtype)
    sums = MomentAccumulator(width=12, hidden_size=5, device=CPU)
    for part in zip(*(t.tensor_split(pieces) for t in (inner, own, correction)), strict=True):
        sums.add(*part)
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_batch_and_seven_give_the_same_moments(dtype: torch.dtype) -> None:
    whole, split = accumulate(1, dtype).moments(NO_OUTPUT), accumulate(7, dtype).moments(NO_OUTPUT)
    for name in ("gram", "cross", "correction"):
        torch.testing.assert_close(getattr(whole, name), getattr(split, name), rtol=1e-5, atol=1e-6)
    assert whole.energy == pytest.approx(split.energy)
    assert whole.tokens == split.tokens == 210


def test_moments_equal_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(210, 12, generator=generator)
    own = torch.randn(210, 5, generator=generator)
    correction = torch.randn(210, 5, generator=generator)
    moments = accumulate(3).moments(NO_OUTPUT)
    expected = torch.einsum("ti,tj->ij", inner.double(), inner.double()) / 210
    torch.testing.assert_close(moments.gram, expected, rtol=1e-5, atol=1e-6)
    assert moments.energy == pytest.approx((own + correction).square().sum().item() / 210)


def test_moments_of_two_parts_add_up_to_the_whole() -> None:
    first = MomentAccumulator(width=3, hidden_size=2, device=CPU)
    second = MomentAccumulator(width=3, hidden_size=2, device=CPU)
    both = MomentAccumulator(width=3, hidden_size=2, device=CPU)
    generator = torch.Generator().manual_seed(0)
    for sums, tokens in ((first, 10), (second, 35)):
        inner, own = (
            torch.randn(tokens, width, generator=generator, dtype=torch.float64) for width in (3, 2)
        )
        sums.add(inner, own, None)
        both.add(inner, own, None)
    merged, whole = first.moments(NO_OUTPUT) + second.moments(NO_OUTPUT), both.moments(NO_OUTPUT)
    torch.testing.assert_close(merged.gram, whole.gram)
    torch.testing.assert_close(merged.cross, whole.cross)
    assert merged.energy == pytest.approx(whole.energy)


def test_cross_moment_of_a_linear_own_output_follows_from_the_gram_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    output = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    streamed = MomentAccumulator(width=6, hidden_size=3, device=CPU)
    derived = MomentAccumulator(width=6, hidden_size=3, device=CPU, own_is_linear=True)
    for sums in (streamed, derived):
        sums.add(inner, inner @ output, None)
    torch.testing.assert_close(derived.moments(output).cross, streamed.moments(output).cross)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_activation_raises_at_once(value: float) -> None:
    inner = torch.zeros(4, 3)
    inner[2, 1] = value
    sums = MomentAccumulator(width=3, hidden_size=2, device=CPU)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        sums.add(inner, torch.zeros(4, 2), None)


def test_rotary_statistics_equal_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 4, 7, 6, generator=generator)
    key = torch.randn(2, 2, 7, 6, generator=generator)
    sums = RotaryAccumulator(num_key_value_heads=2, pairs=3, device=CPU)
    sums.add(query, key)
    statistics = sums.statistics()
    for group in range(2):
        for pair in range(3):
            dims = [pair, pair + 3]
            q = query[:, 2 * group : 2 * group + 2][..., dims]
            k = key[:, group][..., dims]
            centred = k - k.mean(dim=1, keepdim=True)
            query_energy = q.square().sum().item() / 14
            assert statistics.query_energy[group, pair] == pytest.approx(query_energy)
            key_energy = centred.square().sum().item() / 14
            assert statistics.centered_key_energy[group, pair] == pytest.approx(key_energy)
            product = sum((q[:, h] * k).abs().sum().item() for h in range(2))
            assert statistics.product[group, pair] == pytest.approx(product / 14)
            # arXiv 2408.09632: dimension by dimension, nothing centred.
            q_energy, k_energy = q.square().sum((0, 1, 2)) / 14, k.square().sum((0, 1)) / 14
            energies = sum(float(q_energy[i] * k_energy[i]) for i in range(2))
            assert statistics.energy_product[group, pair] == pytest.approx(energies)


def test_a_key_that_is_constant_over_the_sequence_has_no_centred_energy() -> None:
    key = torch.ones(1, 1, 9, 4) * 5
    sums = RotaryAccumulator(num_key_value_heads=1, pairs=2, device=CPU)
    sums.add(torch.randn(1, 2, 9, 4), key)
    assert sums.statistics().centered_key_energy.abs().max() < 1e-10


@pytest.mark.parametrize("pieces", [1, 7])
def test_head_energies_equal_their_definition_for_any_split(pieces: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(14, 4, 6, 10, generator=generator)
    key = torch.randn(14, 2, 6, 10, generator=generator)
    sums = HeadEnergyAccumulator(num_attention_heads=4, num_key_value_heads=2, pairs=5, device=CPU)
    for part in zip(query.tensor_split(pieces), key.tensor_split(pieces), strict=True):
        sums.add(*part)
    energies = sums.energies()
    for heads, energy in ((query, energies.query), (key, energies.key)):
        assert energy.shape == (heads.shape[1], 5)
        for head in range(heads.shape[1]):
            for pair in range(5):
                expected = heads[:, head, :, [pair, pair + 5]].square().sum() / (14 * 6)
                assert energy[head, pair].item() == pytest.approx(expected.item(), rel=1e-5)


def stream(factor: float, prefix_length: int = 1) -> torch.Tensor:
    """Return hidden states of 4 sequences whose prefix is `factor` times as long."""
    hidden = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0))
    hidden[:, :prefix_length] *= factor
    return hidden


@pytest.mark.parametrize("prefix_length", [1, 2])
def test_a_long_prefix_is_scaled_to_the_energy_of_the_other_positions(prefix_length: int) -> None:
    hidden = stream(1000.0, prefix_length)
    scale = prefix_scale(hidden, prefix_length)
    energy = scaled(hidden, scale).square().sum(-1)
    typical = energy[:, prefix_length:].mean(1, keepdim=True)
    torch.testing.assert_close(energy[:, :prefix_length], typical.expand(-1, prefix_length))
    assert torch.equal(scale[:, prefix_length:], torch.ones(4, 9 - prefix_length, 1))


def test_a_short_prefix_is_not_enlarged_and_no_prefix_not_scaled() -> None:
    hidden = stream(0.001)
    assert torch.equal(prefix_scale(hidden, 1), torch.ones(4, 9, 1))
    hidden[:, 0] = 0.0
    assert torch.equal(prefix_scale(hidden, 1), torch.ones(4, 9, 1))
    assert prefix_scale(hidden, 0) is None
    assert scaled(hidden, None) is hidden


def test_the_scale_of_a_sequence_does_not_depend_on_its_batch() -> None:
    hidden = stream(30.0)
    rows = [prefix_scale(row.unsqueeze(0), 1) for row in hidden]
    assert torch.equal(prefix_scale(hidden, 1), torch.cat(rows))


def test_the_prefix_is_no_part_of_head_energies_but_a_key_for_all_queries() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 7, 8, generator=generator) for heads in (4, 2))
    shape = {"num_key_value_heads": 2, "pairs": 4, "device": CPU}
    energies, plain = (
        HeadEnergyAccumulator(num_attention_heads=4, prefix_length=length, **shape)
        for length in (2, 0)
    )
    energies.add(query, key)
    plain.add(query[:, :, 2:], key[:, :, 2:])
    assert torch.equal(energies.energies().query, plain.energies().query)
    assert torch.equal(energies.energies().key, plain.energies().key)
    rotary = RotaryAccumulator(**shape, prefix_length=2)
    rotary.add(query, key)
    statistics = rotary.statistics()
    centred = (key - key.mean(2, keepdim=True)).square().mean((0, 2)).view(2, 2, 4).sum(1)
    torch.testing.assert_close(statistics.centered_key_energy, centred.double())
    text = RotaryAccumulator(**shape)
    text.add(query[:, :, 2:], key[:, :, 2:])
    torch.testing.assert_close(statistics.query_energy, text.statistics().query_energy)
    torch.testing.assert_close(statistics.energy_product, text.statistics().energy_product)
    torch.testing.assert_close(statistics.product, text.statistics().product)
