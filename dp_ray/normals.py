"""Normal numbers from random words, computed by torch in several threads."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from dp_ray.parallel import in_threads

_PART = 2**13
"""Pairs that are computed at once: their temporaries fit a core's cache, and torch, which shares
out operations on 2¹⁵ elements or more, leaves the threads to us."""

_SPAN = 2**16
"""Pairs that a thread takes at a time."""

Words = Callable[[NDArray[np.uint64]], NDArray[np.uint64]]
"""Two words [n, 2] for each of n counters."""


def box_muller(words: Words, count: int) -> NDArray[np.float64]:
    """Return ``count`` standard normal numbers in float64, by Box and Muller (1958).

    Words 2i and 2i + 1 give numbers 2i and 2i + 1. The radius uses all 64 bits of its word, which
    cuts the tail at 9.49 standard deviations (probability beyond: below 3e-21), and the angle the
    upper 53 bits of its own. Logarithm, sine and cosine are torch's, which may differ in the last
    bit between machines and versions.

    Args:
        words: gives the words of counters 0, 1, …; called from several threads.
        count: how many numbers.
    """
    pairs = np.empty(((count + 1) // 2, 2))

    def fill(first: int) -> None:
        last = min(first + _SPAN, len(pairs))
        for start in range(first, last, _PART):
            _fill(pairs[start : min(start + _PART, last)], start, words)

    in_threads(fill, range(0, len(pairs), _SPAN), torch.get_num_threads())
    return pairs.reshape(-1)[:count]


def _fill(pairs: NDArray[np.float64], start: int, words: Words) -> None:
    drawn = words(np.arange(start, start + len(pairs), dtype=np.uint64))
    radius = torch.from_numpy(drawn[:, 0].astype(np.float64))
    radius.add_(0.5).mul_(2.0**-64).log_().mul_(-2.0).sqrt_()
    angle = torch.from_numpy((drawn[:, 1] >> np.uint64(11)).astype(np.float64))
    angle.mul_(2.0 * math.pi * 2.0**-53)
    np.multiply(radius.numpy(), angle.cos().numpy(), out=pairs[:, 0])
    np.multiply(radius.numpy(), angle.sin().numpy(), out=pairs[:, 1])
