"""What is wrong with the arguments of the functional step, where torch fails inside a transform."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from dp_ray.errors import ArgumentError
from dp_ray.gradients.engines.engine import LossFunction
from dp_ray.imports import USER_ERRORS, cause_of
from dp_ray.objectives.single_label import cross_entropy


def check_no_batch_norm(model: nn.Module) -> None:
    """Refuse batch norm that would normalise a unit by statistics of a batch.

    Raises:
        ArgumentError: the network has such a layer, in training mode.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ArgumentError(
                f"model layer {name or type(module).__name__} ({type(module).__name__}) mixes the "
                "examples of a batch: replace it by nn.GroupNorm, or freeze it with "
                "model.eval() if its statistics are public"
            )


@torch.no_grad()
def explain(
    model: nn.Module,
    params: Mapping[str, Tensor],
    views: Tensor,
    labels: Tensor,
    loss_fn: LossFunction,
) -> ArgumentError | None:
    """Return what is wrong with the arguments, found without any transform; None if nothing is.

    Args:
        model: as of :func:`~dp_ray.gradients.clipped_sum.clipped_gradient_sum`, as are the others.
        params: likewise.
        views: likewise.
        labels: likewise.
        loss_fn: likewise.
    """
    if len(views) == 0:
        return None
    shape = list(views.shape[1:])
    try:
        outputs = functional_call(model, dict(params), (views[0],))
    except USER_ERRORS as error:
        return ArgumentError(
            f"views: the network does not take the views of one unit, {views.dtype} of shape "
            f"{shape}: {cause_of(error)}. Give what the network takes as a batch of {shape[0]}"
        )
    if not isinstance(outputs, Tensor):
        return ArgumentError(
            f"model: returns {type(outputs).__name__} for the views of one unit; return one tensor"
        )
    if loss_fn is cross_entropy and (problem := _problem_of_classes(outputs, labels)):
        return ArgumentError(problem)
    try:
        loss = loss_fn(outputs, labels[0].expand(len(outputs), *labels.shape[1:]))
    except USER_ERRORS as error:
        return ArgumentError(
            f"loss_fn: fails on outputs of shape {list(outputs.shape)} and labels of shape "
            f"{[len(outputs), *labels.shape[1:]]}: {cause_of(error)}"
        )
    if loss.numel() != 1 or loss.ndim:
        return ArgumentError(
            f"loss_fn: returns a tensor of shape {list(loss.shape)} for one unit; return one "
            "number, the mean over its views"
        )
    return None


def _problem_of_classes(outputs: Tensor, labels: Tensor) -> str | None:
    """What keeps cross-entropy from being taken; no label's value is shown."""
    if outputs.ndim != 2:
        return (
            f"model: returns outputs of shape {list(outputs.shape)} for the views of one unit, "
            "where cross-entropy takes [K, classes]; pass loss_fn for others"
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        return (
            f"labels = {labels.dtype} of shape {list(labels.shape)}: class indices are needed, "
            "int64 of shape [B], one for each unit; pass loss_fn for others"
        )
    classes = outputs.shape[1]
    if bool((labels < 0).any()) or bool((labels >= classes).any()):
        return (
            f"labels: some are outside of 0 to {classes - 1}, and the network returns {classes} "
            "outputs for each view. Give it one output for each class"
        )
    return None
