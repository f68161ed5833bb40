"""What workers say to one another: a sum towards rank 0, a broadcast from it, nothing else."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Collective(Protocol):
    """W workers of which rank 0 is the coordinator's.

    Attributes:
        rank: this worker's number.
        world_size: W.
        node: where this worker runs, for people; None if all are on one machine.
    """

    rank: int
    world_size: int
    node: str | None

    def reduce_(self, tensor: Tensor) -> None:
        """Sums ``tensor`` over the workers into rank 0's; the others' contents are lost."""
        ...

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrites ``tensor`` by rank 0's."""
        ...


class Alone:
    """One worker, no communication.

    Args:
        node: see :class:`Collective`.
    """

    rank = 0
    world_size = 1

    def __init__(self, node: str | None = None) -> None:
        self.node = node

    def reduce_(self, tensor: Tensor) -> None:
        """Nothing to add."""

    def broadcast_(self, tensor: Tensor) -> None:
        """Nobody to tell."""


class ProcessGroup:
    """The default group of ``torch.distributed`` (gloo or nccl), already initialised.

    Args:
        device: where this worker computes.
        node: see :class:`Collective`.
    """

    def __init__(self, device: torch.device, node: str | None = None) -> None:
        self.node = node
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = device

    def reduce_(self, tensor: Tensor) -> None:
        """See :class:`Collective`."""
        moved = tensor.to(self._device)
        dist.reduce(moved, dst=0)
        if moved is not tensor and self.rank == 0:
            tensor.copy_(moved)

    def broadcast_(self, tensor: Tensor) -> None:
        """See :class:`Collective`."""
        moved = tensor.to(self._device)
        dist.broadcast(moved, src=0)
        if moved is not tensor:
            tensor.copy_(moved)
