"""How far one example moves what the noise is added to: by C at most, in floating point too.

What is measured is the number inside of the optimizer, before its one rounding: the "noise" of
these releases is minus a known sum, and float32 shows all of what is left.
"""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dp_ray.gradients.clipped_sum import clipped_gradient_sum
from dp_ray.gradients.clipping import Clipping
from dp_ray.gradients.engines.engine import Precision
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.keys import KeyedStream
from dp_ray.privacy.noise import KeyedNoiseOptimizer, noised_count
from dp_ray.privacy.sampling import Shard, microbatches

N = 4096


class Part(nn.Module):
    """A layer whose gradient is its part of the image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


class Parts(nn.Module):
    """Layers whose gradients together are the image itself."""

    def __init__(self, layers: int, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Part(size) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([part.weight for part in self.layers])
        return (x.flatten(1) * weight).sum(dim=1, keepdim=True)


class Opposite(KeyedStream):
    """Noise that is minus a given vector."""

    def __init__(self, vector: Tensor) -> None:
        self._vector = vector.numpy()

    def normal(self, count: int) -> NDArray[np.float64]:
        assert count == len(self._vector)
        return -self._vector


def left_of(total: Tensor, taken: Tensor) -> Tensor:
    """[P] what a float32 parameter's release makes of a sum when another one is taken from it."""
    parameter = nn.Parameter(torch.zeros(len(total)))
    optimizer = KeyedNoiseOptimizer(torch.optim.SGD([parameter], lr=1.0), expected_batch_size=1)
    optimizer.release({"w": total}, noise_multiplier=1.0, sensitivity=1.0, stream=Opposite(taken))
    return -parameter.detach().double()


def total(
    images: Tensor,
    network: Parts,
    c: float,
    *,
    clipping: Clipping,
    precision: Precision = "float32",
    workers: int = 1,
    microbatch_size: int = 1024,
) -> Tensor:
    """[P] the sum of images [n, P] that W workers make of their shards, in microbatches."""
    params = {name: p.detach() for name, p in network.named_parameters()}
    whole = torch.zeros(images.shape[1], dtype=torch.float64)
    for rank in reversed(range(workers)):
        shard = Shard.of(rank, workers, len(images))
        vector = torch.zeros_like(whole)
        for batch in microbatches(np.arange(shard.start, shard.stop), microbatch_size):
            found = clipped_gradient_sum(
                network,
                params,
                images[batch.ids][:, None, None, None],
                torch.zeros(microbatch_size, dtype=torch.int64),
                max_grad_norm=c,
                clipping=clipping,
                mask=torch.from_numpy(batch.mask),
                loss_fn=lambda outputs, _: outputs.mean(),
                engine=build_engine("vmap", precision),
            )
            vector += torch.cat([g.flatten() for g in found.gradients.values()])
        whole += vector
    return whole


def moved(images: Tensor, network: Parts, c: float, **options: Any) -> float:
    """What the noise is added to moves by as the first image leaves, over C.

    All others move by a place: into other microbatches, and at the ends of shards to other workers.
    """
    before = total(images, network, c, **options)
    after = total(images[1:], network, c, **options)
    return float((left_of(before, after) - left_of(after, after)).norm()) / c


@pytest.mark.parametrize("clipping", get_args(Clipping))
def test_equal_gradients_in_great_number_carry_no_neighbour_past_c(clipping: Clipping) -> None:
    """The errors of a sum of equal gradients line up with the gradient that leaves."""
    for layers, size in ((1, 61), (59, 1), (20, 3)):
        images = torch.full((N + 1, layers * size), 1e4)
        found = moved(images, Parts(layers, size), 1.0, clipping=clipping)
        assert 0.999 < found <= 1


@pytest.mark.parametrize(("workers", "microbatch_size"), [(1, 1000), (4, 300)])
def test_large_and_small_gradients_carry_no_neighbour_past_c(
    workers: int, microbatch_size: int
) -> None:
    """Of many sizes, in an order that another one's leaving changes; summed by other workers."""
    generator = torch.Generator().manual_seed(workers)
    for c in (0.7, 1.3):
        lengths = 10.0 ** (8 * torch.rand(N, 1, generator=generator) - 7)
        lengths[0] = 1e3
        found = moved(
            lengths.expand(-1, 57),
            Parts(19, 3),
            c,
            clipping="flat",
            workers=workers,
            microbatch_size=microbatch_size,
        )
        assert 0.999 < found <= 1


def test_bfloat16_carries_no_neighbour_past_c() -> None:
    """What the network computed in short is clipped and added up in full."""
    generator = torch.Generator().manual_seed(3)
    images = 3 + torch.rand(N // 4, 1, generator=generator).expand(-1, 63)
    for c in (0.7, 1.3):
        found = moved(images, Parts(21, 3), c, clipping="flat", precision="bfloat16")
        assert 0.999 < found <= 1


def test_norms_lose_no_more_than_the_margin_to_numbers_that_vanish() -> None:
    """Next to a large square small ones are lost in float32, as many as there are in a row."""
    size, c = 2**14, 1.0
    network = Parts(1, size)
    for row, large, small in itertools.product((64, size), (1, 8, 32), (0.7, 0.999)):
        image = torch.full((1, size), small * 2.0**-12)
        image.view(-1, row)[:, :large] = 1.0
        clipped = total(1e3 * image, network, c, clipping="flat", microbatch_size=1)
        assert 0.999 * c < float(clipped.norm()) <= (1 - 28 * 2.0**-24) * c


def test_the_count_moves_by_a_half() -> None:
    """Halves are added up exactly, and the noise of the count is added to the exact number."""
    for count in (0.0, 8192.0, 2.0**24 + 1):
        stream = Opposite(torch.tensor([count], dtype=torch.float64))
        assert noised_count(count + 0.5, std=1.0, stream=stream) == 0.5
        assert noised_count(count, std=1.0, stream=stream) == 0.0
