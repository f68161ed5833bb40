"""The probe of an audit: its canaries, planted in a run, and the observers of what they show."""

from __future__ import annotations

from dataclasses import dataclass

from dp_ray.auditing.canaries import Canaries, plant
from dp_ray.auditing.neighbours import NeighbourObserver
from dp_ray.auditing.observers import open_release_observer
from dp_ray.auditing.planted import Planted
from dp_ray.data.store import Dataset
from dp_ray.training.probe import Differentiated, ReleaseObserver
from dp_ray.training.setup import Setup
from dp_ray.training.task import Task


@dataclass(frozen=True)
class CanaryProbe:
    """See :class:`~dp_ray.training.probe.Probe`.

    Attributes:
        canaries: what takes the place of some examples.
    """

    canaries: Canaries

    def plant(self, dataset: Dataset) -> Dataset:
        """See :class:`~dp_ray.training.probe.Probe`."""
        return plant(dataset, self.canaries)

    def differentiated(self, task: Task, setup: Setup) -> Planted | None:
        """See :class:`~dp_ray.training.probe.Probe`."""
        return Planted.of(
            self.canaries,
            setup.model,
            task.plan.clipping,
            objective=setup.objective,
            num_classes=setup.dataset.facts.num_classes,
            max_grad_norm=task.plan.max_grad_norm,
            device=next(setup.model.parameters()).device,
        )

    def release_observer(
        self, task: Task, setup: Setup, differentiated: Differentiated | None
    ) -> ReleaseObserver:
        """See :class:`~dp_ray.training.probe.Probe`."""
        assert differentiated is None or isinstance(differentiated, Planted)  # its own
        return open_release_observer(
            task.run.observations,
            self.canaries,
            setup.loaded,
            task.plan,
            model=setup.model,
            layout=setup.layout,
            views=setup.views,
            objective=setup.objective,
            planted=differentiated,
        )

    def sum_observer(self, task: Task) -> NeighbourObserver:
        """See :class:`~dp_ray.training.probe.Probe`."""
        return NeighbourObserver(task.run.neighbours, self.canaries.choice_key, task.plan.steps)
