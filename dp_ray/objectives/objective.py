"""What a run learns: the labels, the loss of a unit's weighted views, and the metrics.

Shapes: n examples or views, K views of one unit, S numbers of a metric state.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Direction = Literal["max", "min"]
"""Whether large or small values of a metric are good."""

METRIC_NAME = re.compile(r"test_[a-z0-9_]+")
"""Results hold metrics beside other figures: this prefix tells them apart."""

_NO_METRICS = ("test_accuracy_noise", "test_accuracies_published", "test_examples")
"""Other figures of results and statements."""


@dataclass(frozen=True)
class LabelSpec:
    """The labels that an objective takes.

    Attributes:
        low, high: the least and the greatest value of an entry.
        shape: of one label; () for a single number.
        dtype: ``int64`` or ``float32``, in which labels are stored.
        padding: what the labels of padding are filled with; a value that the loss accepts.
    """

    low: float
    high: float
    shape: tuple[int, ...] = ()
    dtype: Literal["int64", "float32"] = "int64"
    padding: float = 0

    @property
    def is_class(self) -> bool:
        """Whether a label is one whole number."""
        return self.shape == () and self.dtype == "int64"

    @property
    def in_words(self) -> str:
        """What the labels of all examples are, for messages."""
        kind = "whole numbers" if self.dtype == "int64" else "numbers"
        return f"a row of {kind}" if self.shape == () else f"{kind} of shape {('N', *self.shape)}"

    def takes(self, labels: NDArray[Any]) -> bool:
        """Return whether labels [n, *shape] of any numeric type have this shape and kind."""
        kinds = "iu" if self.dtype == "int64" else "iubf"
        whole = labels.ndim == 1 + len(self.shape) and labels.shape[1:] == self.shape
        return whole and labels.dtype.kind in kinds

    def contains(self, labels: NDArray[Any]) -> bool:
        """Return whether all entries are within the range; a NaN is not."""
        return len(labels) == 0 or bool(self.low <= labels.min() <= labels.max() <= self.high)

    def made_up(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random labels [count, *shape]."""
        shape = (count, *self.shape)
        if self.dtype == "int64":
            return torch.randint(int(self.low), int(self.high) + 1, shape, generator=generator)
        return self.low + (self.high - self.low) * torch.rand(shape, generator=generator)


class Objective(Protocol):
    """What a run learns. Derive from it, or provide all of its members.

    An objective is a function: it holds no state that changes between calls.
    """

    @property
    @abstractmethod
    def labels(self) -> LabelSpec:
        """The labels that it takes."""
        ...

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the network's output for one view."""
        ...

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Direction]:
        """Name of each metric, ``test_…`` → its direction; the first is the primary one."""
        ...

    @abstractmethod
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss [n] of each output [n, *output_shape] at its label [n, *label shape]."""
        ...

    def loss(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss [] of one unit: Σ_v w_v · loss_v over its K views.

        Args:
            outputs: [K, *output_shape].
            labels: [K, *label shape].
            weights: [K], of sum 1; None for the mean.
        """
        return weighted_mean(self.losses(outputs, labels), weights)

    def new_state(self) -> Tensor:
        """Return the metric state [S], float64, of no examples: zeros.

        States are sums over examples: those of batches, and of workers, merge by addition.
        """
        return torch.zeros(len(self.metrics), dtype=torch.float64)

    @abstractmethod
    def update(self, state: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the state [S] with a batch added, of outputs and labels [n, …]."""
        ...

    def compute(self, state: Tensor, examples: int) -> dict[str, float]:
        """Return each metric by its name, from the merged state of at least one example.

        By default entry i of the state over the number of examples is metric i.
        """
        return dict(zip(self.metrics, (state / examples).tolist(), strict=True))

    def warnings(self, state: Tensor, names: Sequence[str]) -> list[str]:
        """Return what is wrong with predictions as a whole, in words; by default nothing.

        Args:
            state: [S], merged, of at least one example.
            names: of the classes by label; empty if they have none.
        """
        del state, names
        return []

    def columns(self, outputs: Tensor, labels: Tensor) -> dict[str, NDArray[Any]]:
        """Return numbers [n] of each example that :meth:`details` needs; by default none."""
        del outputs, labels
        return {}

    def details(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return further figures for ``dp-ray evaluate`` from the columns of all examples."""
        del columns
        return {}


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return Σ_v w_v · loss_v.

    Args:
        losses: [K] of the views of one unit.
        weights: [K], of sum 1; None for the mean. Weights that all are the number 1/K give the
            gradient of the mean bit for bit: their ratio to 1/K is exactly 1.
    """
    if weights is None:
        return losses.mean()
    return (losses * (weights / weights.new_full((), 1 / len(losses)))).mean()


def primary_metric(objective: Objective) -> str:
    """Return the name of the metric that trials are compared by, unless one is configured."""
    return next(iter(objective.metrics))


def worst(direction: Direction) -> float:
    """Return the value that stands for a metric that is no number."""
    return np.inf if direction == "min" else -np.inf


def metrics_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics among the figures of a result, a statement or a line, primary first."""
    return {name: value for name, value in values.items() if is_metric(name)}


def is_metric(name: str) -> bool:
    """Return whether a figure of this name is a metric."""
    return METRIC_NAME.fullmatch(name) is not None and name not in _NO_METRICS
