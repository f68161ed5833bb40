"""W workers of one run in one process, without Ray: threads of which one runs at a time.

They run the training loop as Ray's workers do, and meet where it says so. Each goes on from one
meeting to the next before the following one does, so a test that fails does so every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.training.loop import train
from dp_ray.training.preparation import make_plan
from dp_ray.training.session import Session, open_session
from dp_ray.training.task import Task
from helpers.support import replay_of


class _Table:
    """Where the workers meet: everybody lays a tensor down, the last one to come does the rest."""

    def __init__(self, world_size: int) -> None:
        self.turns = [threading.Semaphore(int(rank == 0)) for rank in range(world_size)]
        self.laid: list[Tensor] = []
        self.errors: list[BaseException] = []

    def meet(self, rank: int, tensor: Tensor, do: Callable[[list[Tensor]], None]) -> None:
        self.laid.append(tensor)
        if len(self.laid) == len(self.turns):
            do(self.laid)
            self.laid = []
        self.pass_on(rank)
        self.turns[rank].acquire()
        if self.errors:
            raise RuntimeError("another worker failed")

    def pass_on(self, rank: int) -> None:
        self.turns[(rank + 1) % len(self.turns)].release()


class InTurns:
    """One worker's side of the table; a :class:`~dp_ray.training.collective.Collective`."""

    def __init__(self, table: _Table, rank: int) -> None:
        self._table = table
        self.rank = rank
        self.world_size = len(table.turns)
        self.node = None  # all on one machine

    def reduce_(self, tensor: Tensor) -> None:
        """What the others hold afterwards is nothing to rely on: here it is nothing at all."""

        def add_up(tensors: list[Tensor]) -> None:
            tensors[0].copy_(torch.stack(tensors).sum(dim=0))
            for other in tensors[1:]:
                other.zero_()

        self._table.meet(self.rank, tensor, add_up)

    def broadcast_(self, tensor: Tensor) -> None:
        """Everybody's becomes rank 0's."""

        def tell(tensors: list[Tensor]) -> None:
            for other in tensors[1:]:
                other.copy_(tensors[0])

        self._table.meet(self.rank, tensor, tell)


class Listener:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.heard: list[dict[str, float]] = []

    def report(self, metrics: dict[str, float]) -> None:
        """See :class:`~dp_ray.training.loop.Observer`."""
        self.heard.append(metrics)


def train_in_turns(config: Config, world_size: int) -> tuple[list[Session], list[Listener]]:
    """Trains a new run with W workers.

    Returns:
        Each worker's session and what it reported.

    Raises:
        BaseException: what the first worker to fail raised.
    """
    task = Task(config, make_plan(config), RunDirectory.of(config), "test")
    task.run.create(config, task.plan, replay=replay_of(config))
    table = _Table(world_size)
    sessions: list[Session | None] = [None] * world_size
    listeners = [Listener() for _ in range(world_size)]

    def work(rank: int) -> None:
        table.turns[rank].acquire()
        try:
            sessions[rank] = session = open_session(
                task, InTurns(table, rank), device=torch.device("cpu"), threads=1
            )
            train(session, listeners[rank])
        except BaseException as error:
            table.errors.append(error)
        finally:
            table.pass_on(rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if table.errors:
        raise table.errors[0]
    return [session for session in sessions if session is not None], listeners
