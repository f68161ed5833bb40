"""Where an audit reaches into a run: the data, the loss of a unit, and what is released.

A run without an audit has no probe. :mod:`dp_ray.auditing.probe` implements these protocols.
Shapes: P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from dp_ray.data.store import Dataset
from dp_ray.gradients.engines.engine import LossFunction
from dp_ray.gradients.layout import ParameterLayout

if TYPE_CHECKING:
    from dp_ray.training.setup import Setup
    from dp_ray.training.step import Assignment, ShardWorker
    from dp_ray.training.task import Task


class Differentiated(Protocol):
    """A network and a loss that a worker differentiates in the place of the run's own."""

    @property
    def network(self) -> nn.Module:
        """Holds the run's parameters, in the run's order."""
        ...

    @property
    def layout(self) -> ParameterLayout:
        """Of the parameters, by their names in ``network``."""
        ...

    @property
    def loss(self) -> LossFunction:
        """Of one example's views."""
        ...


@dataclass(frozen=True)
class Observation:
    """What one release shows.

    Attributes:
        step: counted from 0.
        incarnation: of the step.
        noised: [P] the noised sum, over C.
        params: [P] the parameters that would be published after it.
    """

    step: int
    incarnation: int
    noised: Tensor
    params: Tensor


class ReleaseObserver(Protocol):
    """Sees each release on rank 0, after the update."""

    def observe(self, observation: Observation) -> None:
        """Record one release, durably; the same release may come twice."""
        ...


class SumObserver(Protocol):
    """Sees each sum of rank 0's shard, before it is reduced."""

    def observe(
        self, worker: ShardWorker, params: Tensor, assignment: Assignment, vector: Tensor
    ) -> None:
        """Record what the sum ``vector`` [P] of a step at ``params`` [P] shows."""
        ...


class Probe(Protocol):
    """What an audit changes in a run, and what it observes there."""

    def plant(self, dataset: Dataset) -> Dataset:
        """Return the data that the audited run trains on."""
        ...

    def differentiated(self, task: Task, setup: Setup) -> Differentiated | None:
        """Return what workers differentiate; None for the run's own network and loss."""
        ...

    def release_observer(
        self, task: Task, setup: Setup, differentiated: Differentiated | None
    ) -> ReleaseObserver:
        """Return the observer of releases; ``differentiated`` is what workers differentiate."""
        ...

    def sum_observer(self, task: Task) -> SumObserver:
        """Return the observer of sums."""
        ...
