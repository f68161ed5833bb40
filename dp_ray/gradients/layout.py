"""All trainable parameters as one vector of P numbers, and as views of it by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name → parameter that requires a gradient, detached."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of a network's trainable parameters, in the order of the vector."""

    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, model: nn.Module) -> ParameterLayout:
        """The layout of the parameters that require a gradient."""
        return cls({name: p.shape for name, p in trained_parameters(model).items()})

    @property
    def size(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.shapes.values())

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Name → view of ``vector`` [P]; writing to one writes to the other."""
        pieces = torch.split(vector, [shape.numel() for shape in self.shapes.values()])
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.view(shape) for (name, shape), piece in named}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new vector [P] from tensors by name."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.shapes])


def varied(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy parameters; add small numbers, always the same, to tensors of one constant."""
    generator = torch.Generator().manual_seed(2)
    copies = {name: p.detach().clone() for name, p in params.items()}
    for p in copies.values():
        if p.is_floating_point() and p.numel() and bool(p.min() == p.max()):
            scale = min(0.1, max(p[0].numel(), 1) ** -0.5) if p.ndim else 0.1
            p.add_(torch.randn(p.shape, generator=generator).to(p), alpha=scale)
    return copies
