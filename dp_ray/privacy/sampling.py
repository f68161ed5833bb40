"""Who joins a step: disjoint shards, exact Poisson draws, microbatches of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dp_ray.keys import KeyedStream


@dataclass(frozen=True)
class Shard:
    """The examples with ids ``start`` … ``stop - 1``; the shards of a run cover the data."""

    start: int
    stop: int

    @classmethod
    def of(cls, rank: int, world_size: int, num_examples: int) -> Shard:
        """The shard of one of W workers; sizes differ by one at most."""
        return cls(rank * num_examples // world_size, (rank + 1) * num_examples // world_size)


Streams = Callable[[int], KeyedStream]
"""The keyed stream of each step, for one purpose and one incarnation."""


class Sampler(Protocol):
    """Who joins each step."""

    def draw(self, streams: Streams, step: int, shard: Shard) -> NDArray[np.int64]:
        """Return the ids of the shard's examples that join a step, ascending; maybe none.

        Args:
            streams: the draw's randomness; an example's fate is a function of it and the example's
                id alone, so it does not depend on the shards.
            step: which one.
            shard: whose examples to decide on.
        """
        ...


@dataclass(frozen=True)
class PoissonSampler:
    """Each example joins each step independently with probability q = B̄/N.

    The probability is realised as ``floor(B̄·2⁷²/N)/2⁷²``: below q, by less than 2⁻⁷². Of the 72
    random bits that decide on an example the first eight mostly suffice; the others are drawn where
    these are equal to the threshold's. (Version 1 of a run draws 64 bits at once, and 2⁶⁴ stands in
    the place of 2⁷².)
    """

    num_examples: int
    expected_batch_size: int

    def draw(self, streams: Streams, step: int, shard: Shard) -> NDArray[np.int64]:
        """See :class:`Sampler`."""
        if self.expected_batch_size >= self.num_examples:
            return np.arange(shard.start, shard.stop, dtype=np.int64)
        stream = streams(step)
        if stream.version == 1:
            return self._draw_by_words(stream, shard)
        threshold = (self.expected_batch_size << 72) // self.num_examples
        first, rest = np.uint8(threshold >> 64), np.uint64(threshold % 2**64)
        drawn = stream.bytes_of_range(shard.start, shard.stop)
        joins = drawn < first
        undecided = np.flatnonzero(drawn == first)
        ids = (undecided + shard.start).astype(np.uint64)
        joins[undecided] = stream.words(ids, 1)[:, 0] < rest
        return np.flatnonzero(joins) + shard.start

    def _draw_by_words(self, stream: KeyedStream, shard: Shard) -> NDArray[np.int64]:
        ids = np.arange(shard.start, shard.stop, dtype=np.uint64)
        threshold = np.uint64((self.expected_batch_size << 64) // self.num_examples)
        return ids[stream.words(ids, 1)[:, 0] < threshold].astype(np.int64)


@dataclass(frozen=True)
class Microbatch:
    """B ids, of which those with mask False are padding (id 0, never used as data).

    Attributes:
        ids: [B] int64.
        mask: [B] bool.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]


def microbatches(ids: NDArray[np.int64], size: int) -> Iterator[Microbatch]:
    """Cuts a draw into microbatches of exactly ``size``; an empty draw gives none."""
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        padded = np.zeros(size, dtype=np.int64)
        padded[: len(part)] = part
        yield Microbatch(padded, np.arange(size) < len(part))
