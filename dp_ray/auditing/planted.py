"""The gradient canaries of an audit: examples whose loss is a large multiple of one parameter.

Each has the largest gradient that there can be for who watches one direction: ± a large number at
one parameter, zero elsewhere (Nasr et al. 2023, arXiv 2302.07956). Only the loss is made up: their
images pass through the network with those of other examples, in the same microbatches, so the run's
engine takes their gradients and clips them.

Shapes: m canaries, P parameters, B examples in a microbatch, K views of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_ray.auditing.canaries import Canaries
from dp_ray.gradients.clipping import Clipping, clip_and_sum
from dp_ray.gradients.layout import ParameterLayout, trained_parameters
from dp_ray.objectives.objective import Objective
from dp_ray.privacy.adaptive import LARGEST_CLIP


@dataclass(frozen=True)
class Directions:
    """Where each of the m canaries pushes the parameters; known to the attack.

    Attributes:
        parameter: [m] index of one of the P parameters; no two share one while m ≤ P.
        sign: [m] 1 or -1, drawn evenly, so that what other examples have in common is no bias.
    """

    parameter: Tensor
    sign: Tensor

    @classmethod
    def of(cls, canaries: Canaries, parameters: int, device: torch.device) -> Directions:
        """The directions of canaries in a network of P parameters."""
        words, count = canaries.choices(parameters), len(canaries.replaced)
        taken = np.argsort(words)[np.arange(count) % parameters]
        signs = 1.0 - 2.0 * (canaries.choices(count) >> np.uint64(63)).astype(np.float64)
        return cls(torch.from_numpy(taken).to(device), torch.from_numpy(signs).to(device))

    def along(self, vector: Tensor) -> Tensor:
        """[m] float64 parts of a vector [P] in these directions."""
        return vector[self.parameter].double() * self.sign


class PlantedNetwork(nn.Module):
    """A network whose logits bring along the one parameter of each canary, for its loss.

    Args:
        network: the run's own; its parameters have the same order here.
        directions: of the canaries; buffers, because a compiled graph takes no other tensors.
    """

    parameter: Tensor
    sign: Tensor

    def __init__(self, network: nn.Module, directions: Directions) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("parameter", directions.parameter)
        self.register_buffer("sign", directions.sign)
        self._places = [name.rpartition(".")[::2] for name in trained_parameters(network)]

    def forward(self, images: Tensor) -> Tensor:
        """[K, C, H, W] → [K, classes + ⌈m/K⌉]: each row of logits, and a share of m numbers."""
        logits = self.network(images)
        # By attribute: functional_call puts tensors there that are no nn.Parameter.
        parameters = (getattr(self.network.get_submodule(m), name) for m, name in self._places)
        flat = torch.cat([p.reshape(-1) for p in parameters])
        along = flat.gather(0, self.parameter) * self.sign.to(flat.dtype)
        rows = len(images)
        shares = F.pad(along, (0, -len(along) % rows)).view(rows, -1)
        return torch.cat([logits.to(flat.dtype), shares], dim=1)


@dataclass(frozen=True, eq=False)
class PlantedLoss:
    """The loss of one unit's views: the objective's, unless its label says that it is a canary.

    Attributes:
        objective: of the run; one of classes (:func:`supports`).
        num_classes: the label of canary i is this number and i.
        size: norm of a canary's gradient, far above C, so that clipping has work to do.
    """

    objective: Objective
    num_classes: int
    size: float

    def __call__(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """[] loss of what :class:`PlantedNetwork` returns, and of labels [K]; 0 for a canary."""
        width = self.objective.output_shape[0]
        classes, along = outputs[:, :width], outputs[:, width:].flatten()
        chosen = along.gather(0, (labels[:1] - self.num_classes).clamp(min=0))
        pushed = (self.size * (chosen - chosen.detach())).sum()
        loss = self.objective.loss(classes, labels.clamp(max=self.num_classes - 1), weights)
        return torch.where(labels[0] < self.num_classes, loss, pushed)


def supports(objective: Objective, num_classes: int) -> bool:
    """Return whether canaries can be planted among the labels of an objective.

    A canary has a label that no class has, or another class's, so labels must be class indices; and
    outputs must be rows, beside which :class:`PlantedNetwork` puts its own.
    """
    labels = objective.labels
    indices = labels.is_class and (labels.low, labels.high) == (0, num_classes - 1)
    return indices and len(objective.output_shape) == 1


@dataclass(frozen=True)
class Planted:
    """What a worker differentiates in an audit with gradient canaries.

    Attributes:
        network: the run's network, with what the loss of canaries needs.
        directions: of the canaries.
        layout: of the parameters, by their names in ``network``.
        loss: of examples and canaries.
        clipping: as for all examples.
    """

    network: PlantedNetwork
    directions: Directions
    layout: ParameterLayout
    loss: PlantedLoss
    clipping: Clipping

    @classmethod
    def of(
        cls,
        canaries: Canaries | None,
        model: nn.Module,
        clipping: Clipping,
        *,
        objective: Objective,
        num_classes: int,
        max_grad_norm: float,
        device: torch.device,
    ) -> Planted | None:
        """Those of a run; None if it has no gradient canaries.

        Args:
            canaries: of the run.
            model: the network.
            clipping: how gradients are brought within C.
            objective: of the run.
            num_classes: of the data.
            max_grad_norm: C at the start.
            device: where sums are computed.
        """
        if canaries is None or canaries.kind != "gradient":
            return None
        directions = Directions.of(canaries, ParameterLayout.of(model).size, device)
        network = PlantedNetwork(model, directions)
        # Above any C that the run may have, where it adapts; the square is a float32 number.
        size = 1e4 * max(max_grad_norm, LARGEST_CLIP)
        loss = PlantedLoss(objective, num_classes, size)
        return cls(network, directions, ParameterLayout.of(network), loss, clipping)

    def amplitude(self, max_grad_norm: float) -> float:
        """Norm of what is left of a canary after clipping, over C: below 1 if by layers."""
        gradient = torch.zeros(1, self.layout.size)
        gradient[0, self.directions.parameter[0]] = self.loss.size
        pieces = self.layout.split(gradient[0])
        total, _ = clip_and_sum(
            {name: piece[None] for name, piece in pieces.items()},
            torch.ones(1, dtype=torch.bool),
            torch.tensor(max_grad_norm, dtype=torch.float64),
            self.clipping,
        )
        return float(self.layout.join(total).norm()) / max_grad_norm
