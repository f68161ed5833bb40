"""The plain way to a clipped gradient sum: one unit, one view at a time, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loop_gradients(
    model: nn.Module,
    views: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> list[dict[str, Tensor]]:
    """For each unit, name → gradient: of each view by itself, then the mean, or sum by weights."""
    model = copy.deepcopy(model).double()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    examples = []
    for i in range(len(views)):
        mean = {name: torch.zeros_like(p) for name, p in trained.items()}
        for k, view in enumerate(views[i]):
            weight = 1 / len(views[i]) if weights is None else float(weights[i, k])
            inputs = view.double() if view.is_floating_point() else view
            loss = loss_fn(model(inputs[None]), labels[i : i + 1])
            gradients = torch.autograd.grad(loss, list(trained.values()))
            for name, gradient in zip(trained, gradients, strict=True):
                mean[name] += gradient * weight
        examples.append(mean)
    return examples


def loop_norms(examples: list[dict[str, Tensor]]) -> Tensor:
    """[B] norm of each example's gradient over all parameters."""
    return torch.stack([torch.cat([g.flatten() for g in e.values()]).norm() for e in examples])


def loop_clipped_sum(
    examples: list[dict[str, Tensor]], mask: Tensor, max_grad_norm: float, clipping: str = "flat"
) -> dict[str, Tensor]:
    """Name → sum over the examples that the mask lets in, each clipped by itself."""
    total = {name: torch.zeros_like(g) for name, g in examples[0].items()}
    for example, norm, counted in zip(examples, loop_norms(examples), mask, strict=True):
        if counted and norm.isfinite():
            for name, gradient in example.items():
                total[name] += gradient * _factor(example, name, max_grad_norm, clipping)
    return total


def _factor(example: dict[str, Tensor], name: str, max_grad_norm: float, clipping: str) -> float:
    """By what a tensor of one example's gradient is multiplied."""
    if clipping == "automatic":
        return max_grad_norm / (float(loop_norms([example])) + 0.01)
    if clipping == "flat":
        return min(1.0, max_grad_norm / float(loop_norms([example])))
    modules = {n: n.split(".")[:-1] for n in example}
    layer = {n: g for n, g in example.items() if modules[n] == modules[name]}
    count = len({tuple(path) for path in modules.values()})
    return min(1.0, max_grad_norm / count**0.5 / float(loop_norms([layer])))
