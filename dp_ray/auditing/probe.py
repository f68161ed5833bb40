"""The probe of an audit: its canaries, planted in a run, and the observers of what they show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dp_ray.auditing.canaries import Canaries, plant
from dp_ray.auditing.neighbours import NeighbourObserver
from dp_ray.auditing.observers import open_release_observer
from dp_ray.auditing.planted import Planted
from dp_ray.data.store import Dataset
from dp_ray.data.views import ViewMaker
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.objectives.registry import build_objective
from dp_ray.training.probe import ReleaseObserver
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

    def differentiated(
        self, task: Task, dataset: Dataset, model: nn.Module, device: torch.device
    ) -> Planted | None:
        """See :class:`~dp_ray.training.probe.Probe`."""
        return Planted.of(
            self.canaries,
            model,
            task.plan.clipping,
            objective=build_objective(task.config.objective, dataset.facts.num_classes),
            num_classes=dataset.facts.num_classes,
            max_grad_norm=task.plan.max_grad_norm,
            device=device,
        )

    def release_observer(
        self,
        task: Task,
        dataset: Dataset,
        model: nn.Module,
        layout: ParameterLayout,
        views: ViewMaker,
    ) -> ReleaseObserver:
        """See :class:`~dp_ray.training.probe.Probe`."""
        device = next(model.parameters()).device
        return open_release_observer(
            task.run.observations,
            self.canaries,
            dataset,
            task.plan,
            model=model,
            layout=layout,
            views=views,
            objective=build_objective(task.config.objective, dataset.facts.num_classes),
            planted=self.differentiated(task, dataset, model, device),
        )

    def sum_observer(self, task: Task) -> NeighbourObserver:
        """See :class:`~dp_ray.training.probe.Probe`."""
        return NeighbourObserver(task.run.neighbours, self.canaries.choice_key, task.plan.steps)
