"""Shards, Poisson draws and microbatches: every example once, and with the right probability."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dp_ray.keys import VERSIONS, KeyedStream
from dp_ray.privacy.sampling import PoissonSampler, Shard, microbatches

KEY = bytes(range(32))  # fixed, so that a statistical test gives the same verdict each time
FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=80)


def stream(step: int, incarnation: int = 0) -> KeyedStream:
    return KeyedStream(KEY, incarnation=incarnation, step=step)


def inclusions(num_examples: int, expected: int, steps: int) -> NDArray[np.bool_]:
    """[steps, N] who joined which step."""
    sampler = PoissonSampler(num_examples, expected)
    joined = np.zeros((steps, num_examples), dtype=bool)
    for step in range(steps):
        joined[step, sampler.draw(stream, step, Shard(0, num_examples))] = True
    return joined


@given(workers=st.integers(1, 70), num_examples=st.integers(0, 3000))
@FIXED
def test_shards_are_disjoint_cover_the_data_and_are_of_equal_size(
    workers: int, num_examples: int
) -> None:
    shards = [Shard.of(rank, workers, num_examples) for rank in range(workers)]
    ids = [i for shard in shards for i in range(shard.start, shard.stop)]
    assert ids == list(range(num_examples))
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@given(
    workers=st.integers(1, 40),
    num_examples=st.integers(1, 800),
    share=st.floats(0.001, 1.0),
    step=st.integers(0, 10**6),
)
@FIXED
def test_draws_do_not_depend_on_the_sharding(
    workers: int, num_examples: int, share: float, step: int
) -> None:
    sampler = PoissonSampler(num_examples, max(1, int(share * num_examples)))
    whole = sampler.draw(stream, step, Shard(0, num_examples))
    parts = [
        sampler.draw(stream, step, Shard.of(rank, workers, num_examples)) for rank in range(workers)
    ]
    assert whole.dtype == np.int64
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert np.all(np.diff(whole) > 0)
    assert set(whole.tolist()) <= set(range(num_examples))


@pytest.mark.parametrize(("num_examples", "expected"), [(200, 20), (150, 75), (100, 97)])
def test_each_example_joins_with_probability_q(num_examples: int, expected: int) -> None:
    """Each count lies inside its binomial interval, and all together fit (chi-square)."""
    steps, q = 2000, expected / num_examples
    counts = inclusions(num_examples, expected, steps).sum(axis=0)
    low, high = stats.binom.interval(1 - 1e-3 / num_examples, steps, q)
    assert low <= counts.min()
    assert counts.max() <= high
    spread = float(((counts - steps * q) ** 2 / (steps * q * (1 - q))).sum())
    low, high = stats.chi2.interval(0.999, num_examples)
    assert low <= spread <= high
    low, high = stats.binom.interval(0.999, steps * num_examples, q)
    assert low <= counts.sum() <= high


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("num_examples", "expected"), [(20_000, 1), (20_000, 79), (70_000, 61_234)]
)
def test_a_draw_compares_all_bits_with_the_threshold(
    num_examples: int, expected: int, version: int
) -> None:
    """As integers: 72 bits of an example, of which words decide where bytes cannot, against q."""
    random = KeyedStream(KEY, incarnation=0, step=1, version=version)
    shard = Shard(5, num_examples)
    ids = np.arange(shard.start, shard.stop)
    numbers = random.words(ids.astype(np.uint64), 1)[:, 0].tolist()
    bits = 64
    if version > 1:
        first = random.bytes_of_range(shard.start, shard.stop).tolist()
        assert (expected << 8) // num_examples in first  # so that words decide on some
        numbers, bits = [a << 64 | b for a, b in zip(first, numbers, strict=True)], 72
    joins = [n * num_examples < expected << bits for n in numbers]
    found = PoissonSampler(num_examples, expected).draw(lambda _: random, 1, shard)
    assert found.tolist() == ids[joins].tolist()


def test_a_word_decides_where_the_byte_is_the_thresholds() -> None:
    """A rate of which the first eight bits are none: without the words nobody would ever join."""
    joined = inclusions(20_000, 40, 200)
    low, high = stats.binom.interval(0.999, joined.size, 40 / 20_000)
    assert low <= joined.sum() <= high


def test_batch_sizes_vary_as_those_of_independent_draws() -> None:
    """Examples join independently: a sampler of fixed-size batches has no such variance."""
    num_examples, expected, steps = 400, 60, 2000
    sizes = inclusions(num_examples, expected, steps).sum(axis=1)
    q = expected / num_examples
    spread = float(((sizes - expected) ** 2).sum()) / (num_examples * q * (1 - q))
    low, high = stats.chi2.interval(0.999, steps)
    assert low <= spread <= high


def test_two_examples_join_independently() -> None:
    steps, num_examples = 3000, 30
    joined = inclusions(num_examples, 10, steps).astype(float)
    correlation = np.corrcoef(joined, rowvar=False)[np.triu_indices(num_examples, 1)]
    assert np.abs(correlation).max() < stats.norm.isf(5e-4 / len(correlation)) / steps**0.5


@pytest.mark.parametrize(
    ("first", "second"), [((1, 0), (2, 0)), ((7, 0), (8, 0)), ((1, 0), (1, 1)), ((2, 1), (1, 2))]
)
def test_two_steps_are_independent(first: tuple[int, int], second: tuple[int, int]) -> None:
    """Also two incarnations of one step."""
    num_examples, expected = 20_000, 6000
    sampler = PoissonSampler(num_examples, expected)
    joined = np.zeros((2, num_examples))
    for row, (step, incarnation) in enumerate((first, second)):
        joined[
            row,
            sampler.draw(partial(stream, incarnation=incarnation), step, Shard(0, num_examples)),
        ] = 1
    correlation = float(np.corrcoef(joined)[0, 1])
    assert abs(correlation) < stats.norm.isf(5e-4) / num_examples**0.5


def test_an_equal_step_is_an_equal_draw() -> None:
    sampler = PoissonSampler(500, 100)
    shard = Shard(0, 500)
    first = sampler.draw(stream, 9, shard)
    assert first.tolist() == sampler.draw(stream, 9, shard).tolist()
    assert first.tolist() != sampler.draw(stream, 10, shard).tolist()
    assert first.tolist() != sampler.draw(partial(stream, incarnation=1), 9, shard).tolist()


def test_a_full_batch_takes_every_example_in_every_step() -> None:
    sampler = PoissonSampler(300, 300)
    for step in range(20):
        assert sampler.draw(stream, step, Shard(0, 300)).tolist() == list(range(300))
    assert sampler.draw(stream, 0, Shard(100, 103)).tolist() == [100, 101, 102]


def test_a_tiny_rate_often_draws_nobody() -> None:
    """Nothing fills an empty batch up: it is empty with probability (1 - q)^N, about 1/e."""
    num_examples, steps = 1000, 1000
    sampler = PoissonSampler(num_examples, 1)
    shard = Shard(0, num_examples)
    empty = sum(len(sampler.draw(stream, step, shard)) == 0 for step in range(steps))
    low, high = stats.binom.interval(0.999, steps, (1 - 1 / num_examples) ** num_examples)
    assert 0 < low <= empty <= high


def test_an_empty_shard_draws_nobody() -> None:
    """A worker more than there are examples, with B̄ = N too."""
    for expected in (1, 3):
        ids = PoissonSampler(3, expected).draw(stream, 0, Shard.of(0, 4, 3))
        assert ids.shape == (0,)
        assert list(microbatches(ids, 8)) == []


@given(count=st.integers(0, 200), size=st.integers(1, 70), gap=st.integers(1, 5))
@FIXED
def test_microbatches_hold_every_id_once_and_padding_is_never_real(
    count: int, size: int, gap: int
) -> None:
    ids = np.arange(count, dtype=np.int64) * gap  # id 0, which padding uses too, among them
    parts = list(microbatches(ids, size))
    assert len(parts) == -(-count // size)
    for part in parts:
        assert part.ids.shape == part.mask.shape == (size,)
        assert part.ids.dtype == np.int64
        assert part.mask.dtype == np.bool_
        assert part.mask.any()
        assert np.all((part.ids >= 0) & (part.ids <= max(ids.max(), 0)))  # safe to look up
    real = [int(i) for part in parts for i in part.ids[part.mask]]
    assert real == ids.tolist()
    assert all(part.mask.all() for part in parts[:-1])


def test_an_empty_draw_has_no_microbatch() -> None:
    assert list(microbatches(np.zeros(0, dtype=np.int64), 32)) == []
