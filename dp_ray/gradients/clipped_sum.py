"""Per-unit gradients over K views, clipped and summed: the only place where data meets model.

A unit is what the guarantee protects; its gradient is clipped once, whatever it consists of. An
example is a unit of one. Shapes: B units, K views of each, P parameters in all; C is
``max_grad_norm``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from dp_ray.errors import ArgumentError, DpRayError
from dp_ray.gradients.advice import check_no_batch_norm, explain
from dp_ray.gradients.clipping import SMALLEST_CLIP, Clipping
from dp_ray.gradients.engines.engine import Engine, EngineError, LossFunction
from dp_ray.gradients.engines.vmap import Vmap
from dp_ray.objectives.single_label import cross_entropy


@dataclass(frozen=True)
class ClippedSum:
    """The sum over units of their clipped gradients, with what the noise must be scaled to.

    Attributes:
        gradients: name → float64 tensor of the parameter's shape, the sum over the units.
        norms: [B] L2 norm of each unit's gradient before clipping; private.
        losses: [B] weighted loss over each unit's views; private.
        sensitivity: how far adding or removing one unit can move ``gradients`` in L2 norm (C).
    """

    gradients: dict[str, Tensor]
    norms: Tensor
    losses: Tensor
    sensitivity: float


def clipped_gradient_sum(
    model: nn.Module,
    params: Mapping[str, Tensor],
    views: Tensor,
    labels: Tensor,
    *,
    max_grad_norm: float,
    clipping: Clipping = "flat",
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    microbatch_size: int | None = None,
    loss_fn: LossFunction = cross_entropy,
    dropout_seeds: Tensor | None = None,
    engine: Engine | None = None,
    into: Mapping[str, Tensor] | None = None,
) -> ClippedSum:
    """Sum of per-unit gradients, each of the weighted loss of its views, each clipped once.

    For unit i, ``g_i = ∇ Σ_k w_ik · loss(f(params, views[i, k]), labels[i])`` with the sum inside
    the differentiated function, so memory grows with B·P and not with B·K·P (with equal weights,
    augmentation multiplicity: De et al. 2022, arXiv 2204.13650, section 3.2). Then
    ``Σ_i g_i · min(1, C/‖g_i‖)`` (Abadi et al. 2016, arXiv 1607.00133, algorithm 1), or as
    ``clipping`` says (:mod:`dp_ray.gradients.clipping`). A unit whose gradient holds a NaN or an
    infinity (or is so large that its norm overflows), and a masked one, adds exactly zero.

    Args:
        model: the network; it is called, never changed. Its buffers, and those of its parameters
            that ``params`` leaves out (frozen ones), are used as they are.
        params: name → tensor, the parameters to differentiate by.
        views: [B, K, …]: images [B, K, C, H, W], or sequences, volumes, features [B, K, F], of any
            shape that the network takes as [K, …].
        labels: [B, …], one a unit, of any shape that ``loss_fn`` takes.
        max_grad_norm: C, the bound on each unit's gradient norm.
        clipping: how gradients are brought within C.
        weights: [B, K] of the views in their unit's loss, each row at least 0 and of sum 1; None
            means equal ones.
        mask: [B] bool, False for padding; None means that all units are real.
        microbatch_size: units differentiated at a time, which bounds memory; None means all.
        loss_fn: loss of one unit's views, called with outputs [K, …] and labels [K, …], and with
            ``weights=`` [K] if weights are given. Default: cross-entropy of logits [K, classes].
        dropout_seeds: [B] int64; if given, masks and other numbers of random layers are a function
            of these seeds alone, and so independent of batching, and a random operation without
            a keyed form (see :mod:`dp_ray.gradients.dropout`) is an error. Otherwise all draw from
            torch's global generator.
        engine: how it is computed; None means plain ``vmap``. Results agree to 1e-5, but where
            rounding moves an activation across a kink (ReLU), and in bfloat16.
        into: name → float64 tensor of the parameter's shape that the sum is added to, in place,
            and that the result then holds; None means new ones, of zeros.

    Returns:
        The clipped sum; ``norms`` and ``losses`` have one entry per unit, masked ones too.

    Raises:
        ArgumentError: a ``DpRayError`` and ``ValueError``: ``views``, ``labels``, ``weights`` and
            ``mask`` disagree on B or K, C or the microbatch size is too small, a parameter is of a
            half-precision type, the network has batch norm or does not take the views, or the loss
            does not take its outputs and the labels.
        EngineError: the engine cannot be used here.
    """
    _check(params, views, labels, mask, weights, max_grad_norm, microbatch_size)
    if clipping not in get_args(Clipping):
        raise ArgumentError(f"clipping = {clipping!r}: use {', '.join(get_args(Clipping))}")
    check_no_batch_norm(model)
    num_units = len(views)
    if mask is None:
        mask = torch.ones(num_units, dtype=torch.bool, device=views.device)

    engine = engine or Vmap()
    if into is None:
        into = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in params.items()}
    norms, losses = [], []
    for start in range(0, num_units, microbatch_size or max(num_units, 1)):
        part = slice(start, start + (microbatch_size or num_units))
        try:
            sums, part_norms, part_losses = engine.microbatch_sum(
                model,
                params,
                views[part],
                labels[part],
                mask=mask[part],
                max_grad_norm=max_grad_norm,
                clipping=clipping,
                loss_fn=loss_fn,
                weights=None if weights is None else weights[part],
                dropout_seeds=None if dropout_seeds is None else dropout_seeds[part],
            )
        except (EngineError, DpRayError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch's messages are of its transforms
            raise explain(model, params, views, labels, loss_fn) or error from error
        for name, part_sum in sums.items():
            into[name].add_(part_sum)
        norms.append(part_norms)
        losses.append(part_losses)
    empty = next(iter(params.values())).new_zeros(0)
    return ClippedSum(
        gradients=dict(into),
        norms=torch.cat(norms) if norms else empty,
        losses=torch.cat(losses) if losses else empty,
        sensitivity=max_grad_norm,
    )


def _check(
    params: Mapping[str, Tensor],
    views: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    max_grad_norm: float,
    microbatch_size: int | None,
) -> None:
    for name, value in (("views", views), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ArgumentError(f"{name} must be a tensor, not {type(value).__name__}")
    if views.ndim < 3 or views.shape[1] < 1:
        raise ArgumentError(
            f"views must be [B, K, …] with K of at least 1, not {tuple(views.shape)}"
        )
    num_units, num_views = views.shape[:2]
    if labels.shape[:1] != (num_units,) or (mask is not None and mask.shape != (num_units,)):
        raise ArgumentError("views, labels and mask must have the same number of units")
    if weights is not None and weights.shape != (num_units, num_views):
        raise ArgumentError(
            f"weights must be [B, K] = {(num_units, num_views)}, not {tuple(weights.shape)}"
        )
    if not max_grad_norm >= SMALLEST_CLIP:
        raise ArgumentError(f"max_grad_norm must be at least {SMALLEST_CLIP}, not {max_grad_norm}")
    if microbatch_size is not None and microbatch_size < 1:
        raise ArgumentError(f"microbatch_size must be positive, not {microbatch_size}")
    if any(p.dtype not in (torch.float32, torch.float64) for p in params.values()):
        raise ArgumentError("params must be float32 or float64: sums of shorter types miss C")
