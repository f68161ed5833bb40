"""An audit's look at neighbours: how far one example moves a sum, by taking the sum without it.

Canaries show what a release tells of an example along a direction that is known beforehand. A
network that lets one example change the gradients of others moves the sum along directions that
nobody knows. Here the sum of a step is computed once more, by the run's own worker, with one of the
drawn examples left out; ε rests on the two being no further apart than C.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dp_ray.errors import RunError
from dp_ray.keys import KeyedStream
from dp_ray.storage import Folder
from dp_ray.training.step import Assignment, ShardWorker

_LOOKS = 100
"""Steps, evenly spaced, at which it is done; each costs rank 0 as much as the step itself."""


@dataclass(frozen=True)
class NeighbourObserver:
    """Compares sums of rank 0's shard with those of its neighbours.

    Attributes:
        folder: where distances are noted, one file a step.
        key: 32 bytes that choose who is left out.
        steps: T.
    """

    folder: Folder
    key: bytes
    steps: int

    def observe(
        self, worker: ShardWorker, params: Tensor, assignment: Assignment, vector: Tensor
    ) -> None:
        """Note how far one example moves the sum ``vector`` [P] of a step, over C."""
        if assignment.step % -(-self.steps // _LOOKS):
            return
        drawn = worker.drawn(assignment)
        if not len(drawn):
            return
        stream = KeyedStream(self.key, incarnation=assignment.incarnation, step=assignment.step)
        chosen = int(stream.words(drawn[:1].astype("u8"), 1)[0, 0] % len(drawn))
        without = worker.clipped_sum(params, assignment, left_out=int(drawn[chosen])).vector
        moved = float((vector - without).norm()) / assignment.max_grad_norm
        name = f"{assignment.step:08d}-{assignment.incarnation}"
        if self.folder.exists(name):  # a step that is taken again, perhaps of another shard
            moved = max(moved, float(self.folder.read(name)))
        self.folder.write(name, repr(moved).encode())


def distances(folder: Folder) -> list[float]:
    """How far one example moved each of the sums that were looked at, over C.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return [float(folder.read(name)) for name in sorted(folder.names())]
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: what the audit noted cannot be read: {error}") from error
