"""Classification with one label an example: cross-entropy and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dp_ray.objectives.objective import Direction, LabelSpec, Objective, weighted_mean
from dp_ray.objectives.useless import useless_predictions

METRICS: Mapping[str, Direction] = {"test_accuracy": "max", "test_loss": "min"}


@dataclass(frozen=True)
class Classification(Objective):
    """Classification with one label an example: derive from it to learn by a loss of your own.

    A subclass writes :meth:`losses`; ``test_loss`` is its mean.

    Attributes:
        num_classes: labels count from 0 to this, exclusive; a view's output is a logit for each.
    """

    num_classes: int

    @property
    def labels(self) -> LabelSpec:
        """Class indices."""
        return LabelSpec(0, self.num_classes - 1)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """One logit for each class."""
        return (self.num_classes,)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Share of examples whose largest logit is their label's; mean loss."""
        return METRICS

    def new_state(self) -> Tensor:
        """Return zeros [2 + 2 · classes]: right answers, losses, labels, predictions by class."""
        return torch.zeros(2 + 2 * self.num_classes, dtype=torch.float64)

    def update(self, state: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Add the number of right answers, the sum of losses, and counts by class."""
        predicted = outputs.argmax(dim=1)
        right = float((predicted == labels).sum())
        losses = float(self._sum_of_losses(outputs, labels))
        counts = [found.cpu().bincount(minlength=self.num_classes) for found in (labels, predicted)]
        return state + torch.cat([torch.tensor([right, losses], dtype=torch.float64), *counts])

    def compute(self, state: Tensor, examples: int) -> dict[str, float]:
        """Return accuracy and mean loss."""
        return dict(zip(METRICS, (state[: len(METRICS)] / examples).tolist(), strict=True))

    def warnings(self, state: Tensor, names: Sequence[str]) -> list[str]:
        """Return what :func:`~dp_ray.objectives.useless.useless_predictions` finds."""
        labels, predicted = state[len(METRICS) :].long().numpy().reshape(2, -1)
        return useless_predictions(labels, predicted, right=int(state[0]), names=names)

    def _sum_of_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.losses(outputs, labels).sum()

    def columns(self, outputs: Tensor, labels: Tensor) -> dict[str, NDArray[Any]]:
        """Return label, predicted class and its probability of each example."""
        return {
            "labels": labels.numpy(),
            "predicted": outputs.argmax(dim=1).numpy(),
            "confidence": outputs.double().softmax(dim=1).amax(dim=1).numpy(),
        }

    def details(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the figures of :mod:`dp_ray.objectives.quality`."""
        from dp_ray.objectives.quality import quality  # brings scikit-learn

        return quality(**columns, num_classes=self.num_classes)


@dataclass(frozen=True)
class SingleLabel(Classification):
    """Classification by cross-entropy, in nats."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy [n]."""
        return F.cross_entropy(outputs, labels, reduction="none")

    def loss(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the cross-entropy [] of one unit; see :class:`Objective`."""
        return cross_entropy(outputs, labels, weights)

    def _sum_of_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="sum")


def cross_entropy(outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy [] of one unit's views, by its weights.

    Args:
        outputs: [K, classes] logits.
        labels: [K] class indices.
        weights: [K], of sum 1; None for the mean.
    """
    if weights is None:
        return F.cross_entropy(outputs, labels)
    return weighted_mean(F.cross_entropy(outputs, labels, reduction="none"), weights)
