"""The noise: its size, its shape, and that it is added once whatever the number of workers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from helpers.support import key_of
from numpy.typing import NDArray
from scipy.stats import chi2, kstest
from torch import Tensor, nn

from dp_ray.keys import KeyedStream
from dp_ray.privacy.noise import KeyedNoiseOptimizer, NoiseAhead

P = 20_000
KEY = bytes(32)


def update(
    sums: list[Tensor],
    *,
    sigma: float,
    clip: float,
    batch: int,
    step: int = 0,
    incarnation: int = 0,
    noise_per_worker: bool = False,
    normalize: bool = False,
) -> Tensor:
    """[P] change that SGD with lr 1 makes from the workers' sums; parameters start at zero."""
    vector = torch.zeros(P)
    parameter = nn.Parameter(vector)
    optimizer = KeyedNoiseOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        expected_batch_size=batch,
        normalize_update=normalize,
    )
    key = key_of(7).derive("noise")
    total = torch.stack(sums).sum(dim=0)
    if noise_per_worker:  # the mutation: each rank adds its own
        for rank in range(len(sums) - 1):
            stream = KeyedStream(key, incarnation=rank + 1, step=step)
            total = total + sigma * clip * torch.from_numpy(stream.normal(P)).float()
    optimizer.release(
        {"w": total},
        noise_multiplier=sigma,
        sensitivity=clip,
        stream=KeyedStream(key, incarnation=incarnation, step=step),
    )
    return -parameter.detach()


def variance_is(noise: Tensor, expected: float) -> bool:
    """Whether the variance about zero lies in the 99.9% chi-square interval of ``expected``."""
    low, high = chi2.ppf([0.0005, 0.9995], df=len(noise))
    return bool(low <= float(noise.double().square().sum()) / expected <= high)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(
    ("sigma", "clip", "batch"), [(1.0, 1.0, 1), (2.5, 0.1, 64), (0.7, 10, 512)]
)
def test_variance_at_zero_gradient(workers: int, sigma: float, clip: float, batch: int) -> None:
    """(σC/B̄)², not W times it; and the same noise on every worker would be caught."""
    zeros = [torch.zeros(P)] * workers
    expected = (sigma * clip / batch) ** 2
    noise = update(zeros, sigma=sigma, clip=clip, batch=batch)
    assert variance_is(noise, expected)
    if workers > 1:
        wrong = update(zeros, sigma=sigma, clip=clip, batch=batch, noise_per_worker=True)
        assert not variance_is(wrong, expected)


def test_distribution_is_normal_with_that_deviation() -> None:
    noise = update([torch.zeros(P)], sigma=2.0, clip=0.5, batch=4).numpy()
    accepted = {s: kstest(noise, "norm", args=(0, s * 0.25)).pvalue > 1e-3 for s in (2 / 3, 1, 1.5)}
    assert accepted == {2 / 3: False, 1: True, 1.5: False}


def test_update_is_the_noised_sum_over_the_public_batch_size() -> None:
    sums = [torch.full((P,), 3.0), torch.full((P,), 5.0)]
    without = update(sums, sigma=0.0, clip=1.0, batch=16)
    torch.testing.assert_close(without, torch.full((P,), 0.5))
    noise = update([torch.zeros(P)], sigma=1.0, clip=1.0, batch=16)
    torch.testing.assert_close(update(sums, sigma=1.0, clip=1.0, batch=16), without + noise)


def test_normalised_update_does_not_depend_on_the_clipping_norm() -> None:
    small = update([torch.full((P,), 0.1)], sigma=1.0, clip=0.1, batch=8, normalize=True)
    large = update([torch.full((P,), 10.0)], sigma=1.0, clip=10.0, batch=8, normalize=True)
    torch.testing.assert_close(small, large)


def test_noise_differs_between_steps_and_incarnations_and_repeats_otherwise() -> None:
    zeros = [torch.zeros(P)]
    base = update(zeros, sigma=1.0, clip=1.0, batch=1)
    assert torch.equal(base, update(zeros, sigma=1.0, clip=1.0, batch=1))
    for other in ({"step": 1}, {"incarnation": 1}):
        noise = update(zeros, sigma=1.0, clip=1.0, batch=1, **other)  # type: ignore[arg-type]
        correlation = float(np.corrcoef(base.numpy(), noise.numpy())[0, 1])
        assert abs(correlation) < 4 / P**0.5


def test_low_bits_do_not_show_the_sum() -> None:
    """Noise is added in float64 and rounded once: the released float32 keep all of their bits."""
    large = update([torch.full((P,), 2.0**20)], sigma=1e-3, clip=1.0, batch=1)
    assert set(torch.unique(large).tolist()) <= {2.0**20, 2.0**20 - 0.0625, 2.0**20 + 0.0625}
    # Where noise takes most of a sum of 1 away, float32 numbers about 1 would leave 2⁻²⁴ · n.
    released = update([torch.ones(P)], sigma=1.0, clip=1.0, batch=1)
    small = released[released.abs() < 2.0**-4].double()
    assert len(small) > 100
    assert float(((small * 2.0**24) % 1 == 0).double().mean()) < 0.2


# Drawn ahead.

ADDRESSES = [(0, 3), (0, 4), (1, 3)]


def keyed(incarnation: int, step: int) -> KeyedStream:
    return KeyedStream(KEY, incarnation=incarnation, step=step)


@pytest.mark.parametrize("asked", ADDRESSES)
@pytest.mark.parametrize("drawn", ADDRESSES)
def test_noise_drawn_ahead_goes_to_its_own_address(
    drawn: tuple[int, int], asked: tuple[int, int]
) -> None:
    """Of another step or incarnation it is as if nothing had been drawn."""
    ahead = NoiseAhead(keyed)
    ahead.start(*drawn, count=50)
    incarnation, step = asked
    assert np.array_equal(ahead.of(incarnation)(step).normal(50), keyed(*asked).normal(50))
    ahead.close()


def test_noise_drawn_ahead_is_dropped_by_the_next() -> None:
    """After a conflict, say: the step is drawn again under another incarnation."""
    ahead = NoiseAhead(keyed)
    for incarnation in range(3):
        ahead.start(incarnation, 7, count=50)
    assert np.array_equal(ahead.of(2)(7).normal(50), keyed(2, 7).normal(50))
    assert np.array_equal(ahead.of(1)(7).normal(50), keyed(1, 7).normal(50))
    ahead.close()


def test_noise_is_drawn_while_nobody_waits_for_it() -> None:
    """In a thread, once; and what another length asks for is drawn by itself."""
    drawn: list[tuple[int, bool]] = []
    main = threading.current_thread()

    class Noted(KeyedStream):
        def normal(self, count: int) -> NDArray[np.float64]:
            drawn.append((count, threading.current_thread() is main))
            return super().normal(count)

    ahead = NoiseAhead(lambda incarnation, step: Noted(KEY, incarnation=incarnation, step=step))
    ahead.start(0, 1, count=50)
    source = ahead.of(0)(1)
    first = source.normal(50)
    assert source.normal(50) is first
    assert drawn == [(50, False)]
    assert np.array_equal(source.normal(20), first[:20])
    assert drawn == [(50, False), (20, True)]
    ahead.close()
    ahead.close()  # and again: a run may end in more than one way


def test_a_draw_that_fails_ahead_fails_where_it_is_needed() -> None:
    class Failing(KeyedStream):
        def normal(self, count: int) -> NDArray[np.float64]:
            raise MemoryError(count)

    ahead = NoiseAhead(lambda incarnation, step: Failing(KEY, incarnation=incarnation, step=step))
    ahead.start(0, 1, count=50)
    with pytest.raises(MemoryError):
        ahead.of(0)(1).normal(50)
    ahead.close()


def test_noise_outside_a_release_is_impossible() -> None:
    optimizer = KeyedNoiseOptimizer(
        torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=1.0),
        expected_batch_size=1,
    )
    with pytest.raises(AssertionError, match="release"):
        optimizer.add_noise()
