"""A microbatch's inputs on their way from the host to the device.

Shapes: B examples, K views, V = B·K; images are [C, H, W].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

READ_AHEAD = ("cuda",)
"""Kinds of devices that compute while the host prepares what comes next."""

_DEPTH = 2
"""Microbatches that are ready before they are needed: one being copied, one waiting."""


@dataclass(frozen=True)
class MicrobatchInputs:
    """All that a microbatch's clipped sum is a function of, besides the parameters.

    Images travel as bytes, and views are made of them where the network runs.

    Attributes:
        images: [B, C, H, W] uint8, zero where masked.
        labels: [B] int64, zero where masked.
        mask: [B] bool, False for padding.
        dropout_seeds: [B] int64.
        view_numbers: [11, V] float64, see :meth:`~dp_ray.data.views.ViewMaker.numbers`.
    """

    images: Tensor
    labels: Tensor
    mask: Tensor
    dropout_seeds: Tensor
    view_numbers: Tensor

    def pinned(self, device: torch.device) -> MicrobatchInputs:
        """Copies in page-locked memory, from which a GPU reads by itself."""
        with torch.cuda.device(device):
            return MicrobatchInputs(**{name: t.pin_memory() for name, t in self._named()})

    def to(self, device: torch.device) -> MicrobatchInputs:
        """Copies on a device, made while the host continues if these are pinned."""
        return MicrobatchInputs(**{n: t.to(device, non_blocking=True) for n, t in self._named()})

    def _named(self) -> list[tuple[str, Tensor]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def ahead(items: Iterator[_T]) -> Generator[_T, None, None]:
    """Yields the items in order, each computed by a thread before it is needed.

    The thread ends with this generator: close it if it is not walked through to its end. What
    ``items`` raises is raised here, in place of the item.
    """
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="dp-ray-feed") as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(_DEPTH))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]  # not the end
