import math

import pytest
import torch
from scipy import stats

from ig_core.noise import AddressedNoise, philox

NOISE = AddressedNoise(7, "test")
ALL_ONES = 0xFFFFFFFF


def words(*values):
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (ALL_ONES, ALL_ONES, ALL_ONES, ALL_ONES),
            (ALL_ONES, ALL_ONES),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_matches_the_known_answers_of_random123(counter, key, expected):
    assert [int(word) for word in philox(words(*counter), key)] == list(expected)


def test_philox_works_elementwise():
    counters = torch.arange(12).view(4, 3) * 0x12345678 & ALL_ONES
    together = torch.stack(philox(tuple(counters), (1, 2)))
    alone = [torch.cat(philox(words(*column), (1, 2))) for column in counters.T.tolist()]
    assert torch.equal(together, torch.stack(alone, dim=1))


def test_bits_are_philox_of_block_step_and_index():
    index, step = (5 << 32) + 6, 9
    blocks = [torch.cat(philox(words(block, step, 6, 5), NOISE.key)) for block in range(2)]
    expected = torch.cat(blocks)[:7]
    assert torch.equal(NOISE.bits(torch.tensor([index]), 7, step=step)[0], expected)


@pytest.mark.parametrize("draw", [NOISE.uniform, NOISE.normal], ids=["uniform", "normal"])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_sample_does_not_depend_on_batch_size(draw, batch):
    index = torch.arange(64)
    whole = draw(index, (3, 5), 4)
    parts = [draw(part, (3, 5), 4) for part in index.split(batch)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("draw", [NOISE.uniform, NOISE.normal], ids=["uniform", "normal"])
def test_sample_does_not_depend_on_order(draw):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(order, (15,)), draw(torch.arange(64), (15,))[order])


def test_global_generator_is_neither_read_nor_advanced():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = NOISE.normal(torch.arange(4), (8,))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(NOISE.normal(torch.arange(4), (8,)), first)


def test_more_words_extend_fewer():
    index = torch.arange(3)
    assert torch.equal(NOISE.bits(index, 11)[:, :6], NOISE.bits(index, 6))


@pytest.mark.parametrize(
    ("other", "index_offset", "step"),
    [
        (AddressedNoise(8, "test"), 0, 0),
        (AddressedNoise(7, "other"), 0, 0),
        (NOISE, 0, 1),
        (NOISE, 1000, 0),
        (NOISE, 2**32, 0),
        (NOISE, 0, 2**32 - 1),
    ],
    ids=["seed", "purpose", "step", "index", "index above 2^32", "last step"],
)
def test_another_address_gives_independent_numbers(other, index_offset, step):
    index = torch.arange(1000)
    here = NOISE.normal(index, (20,)).flatten()
    there = other.normal(index + index_offset, (20,), step).flatten()
    correlation = float(torch.corrcoef(torch.stack([here, there]))[0, 1])
    # 4.5 standard errors of the correlation of 20,000 independent pairs.
    assert abs(correlation) < 4.5 / math.sqrt(20_000)
    assert float((here == there).float().mean()) < 1e-3


def test_neighbouring_samples_and_channels_are_uncorrelated():
    draws = NOISE.normal(torch.arange(4000), (10,))
    across_channels = torch.corrcoef(draws.T) - torch.eye(10)
    across_samples = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))
    # 45 pairs of 4,000 values: 4.5 standard errors bound their maximum.
    assert float(across_channels.abs().max()) < 4.5 / math.sqrt(4000)
    assert abs(float(across_samples[0, 1])) < 4.5 / math.sqrt(40_000)


def test_normal_has_the_moments_and_shape_of_a_gaussian():
    draws = NOISE.normal(torch.arange(2000), (100,)).double().flatten()
    count = len(draws)
    # 4.5 standard errors of each moment of a standard normal.
    assert abs(float(draws.mean())) < 4.5 / math.sqrt(count)
    assert abs(float(draws.square().mean()) - 1) < 4.5 * math.sqrt(2 / count)
    assert abs(float(draws.pow(3).mean())) < 4.5 * math.sqrt(15 / count)
    assert abs(float(draws.pow(4).mean()) - 3) < 4.5 * math.sqrt(96 / count)
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3


def test_uniform_has_the_moments_and_shape_of_a_uniform():
    draws = NOISE.uniform(torch.arange(2000), (100,)).double().flatten()
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert abs(float(draws.mean()) - 0.5) < 4.5 / math.sqrt(12 * len(draws))
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3


def constant_bits(word):
    return lambda self, index, count, step=0: torch.full((len(index), count), word)


@pytest.mark.parametrize(("word", "expected"), [(0, 0.0), (ALL_ONES, 1 - 2.0**-24)])
def test_uniform_of_extreme_words_stays_below_one(monkeypatch, word, expected):
    monkeypatch.setattr(AddressedNoise, "bits", constant_bits(word))
    assert NOISE.uniform(torch.arange(1)).item() == expected


@pytest.mark.parametrize("word", [0, ALL_ONES])
def test_normal_of_extreme_words_is_finite(monkeypatch, word):
    monkeypatch.setattr(AddressedNoise, "bits", constant_bits(word))
    assert bool(NOISE.normal(torch.arange(1), (2,)).isfinite().all())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4)])
def test_draws_are_float32_of_the_asked_shape(shape):
    for draw in (NOISE.uniform, NOISE.normal):
        values = draw(torch.arange(6), shape)
        assert values.shape == (6, *shape)
        assert values.dtype == torch.float32


def test_equal_addresses_are_equal_values():
    assert AddressedNoise(7, "test") == NOISE
    assert AddressedNoise(7, "test").key == NOISE.key
