"""Examples whose gradient is given instead of computed: the gradient canaries of an audit.

Each is the largest gradient that there can be for who watches one direction: ± a large number at
one parameter, zero elsewhere (Nasr et al. 2023, arXiv 2302.07956). They are clipped by
the function that clips all gradients, and added to the same sum.

Shapes: m canaries, P parameters, n examples in the data, b of them at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp_ray.data.canaries import Canaries
from dp_ray.privacy.clipping import Clipping, clip_and_sum
from dp_ray.training.layout import ParameterLayout


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


@dataclass(frozen=True)
class PlantedGradients:
    """Which examples are gradient canaries, and what they add.

    Attributes:
        canary: [n] which canary an example is; -1 if its gradient is computed as ever.
        directions: of the canaries.
        layout: order of the parameters.
        clipping: as for all examples.
    """

    canary: NDArray[np.int64]
    directions: Directions
    layout: ParameterLayout
    clipping: Clipping

    @classmethod
    def of(
        cls,
        canaries: Canaries | None,
        layout: ParameterLayout,
        clipping: Clipping,
        *,
        num_examples: int,
        device: torch.device,
    ) -> PlantedGradients | None:
        """Those of a run; None if it has no gradient canaries.

        Args:
            canaries: of the run.
            layout: order of the network's parameters.
            clipping: how gradients are brought within C.
            num_examples: N, before canaries took places.
            device: where sums are computed.
        """
        if canaries is None or canaries.kind != "gradient":
            return None
        directions = Directions.of(canaries, layout.size, device)
        return cls(canaries.by_row(num_examples), directions, layout, clipping)

    def split(self, drawn: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of a draw whose gradients are computed, and canaries whose gradients are given."""
        canary = self.canary[drawn]
        return drawn[canary < 0], canary[canary >= 0]

    def clipped_sum(
        self, canaries: NDArray[np.int64], max_grad_norm: float
    ) -> tuple[Tensor, Tensor]:
        """What canaries [b] add to the sum: [P] float64, and their [b] norms before clipping."""
        which = torch.from_numpy(canaries)
        rows = torch.arange(len(which))
        parameter = self.directions.parameter[which]
        gradients = torch.zeros(len(which), self.layout.size, device=parameter.device)
        gradients[rows, parameter] = self.directions.sign[which].float() * _size(max_grad_norm)
        by_name = zip(self.layout.shapes, self._pieces(gradients), strict=True)
        total, norms = clip_and_sum(
            dict(by_name),
            torch.ones(len(which), dtype=torch.bool, device=parameter.device),
            torch.tensor(max_grad_norm, dtype=torch.float64, device=parameter.device),
            self.clipping,
        )
        return self.layout.join(total), norms

    def amplitude(self, max_grad_norm: float) -> float:
        """Norm of what is left of a canary after clipping, over C: below 1 if by layers."""
        total, _ = self.clipped_sum(np.zeros(1, dtype=np.int64), max_grad_norm)
        return float(total.norm()) / max_grad_norm

    def _pieces(self, gradients: Tensor) -> list[Tensor]:
        sizes = [shape.numel() for shape in self.layout.shapes.values()]
        pieces = torch.split(gradients, sizes, dim=1)
        shapes = self.layout.shapes.values()
        return [p.view(len(p), *shape) for p, shape in zip(pieces, shapes, strict=True)]


def _size(max_grad_norm: float) -> float:
    """Well above C, so that clipping has work to do, and automatic clipping leaves nearly C."""
    return 10.0 * max_grad_norm + 1.0
