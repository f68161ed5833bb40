"""Per-example gradients over K views, clipped and summed: the only place where data meets model.

Shapes: B examples, K views, P parameters in all; C is ``max_grad_norm``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from dp_ray.privacy.dropout import KeyedDropout

_NORM_ROW = 256

_SLACK = 1 - 2.0**-18
"""Clipped to this part of C, so that the rounding of a float32 sum does not carry it past C."""

SMALLEST_CLIP = 1e-9
"""Squares of float32 numbers vanish below about 1e-19: a much smaller C would clip nothing."""

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [K, classes] and labels [K] of one example's views to a scalar: their mean loss."""


@dataclass(frozen=True)
class ClippedSum:
    """The sum over examples of their clipped gradients, with what the noise must be scaled to.

    Attributes:
        gradients: name → tensor of the parameter's shape, the sum over the examples.
        norms: [B] L2 norm of each example's gradient before clipping; private.
        losses: [B] mean loss over each example's views; private.
        sensitivity: how far adding or removing one example can move ``gradients`` in L2 norm (C).
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
    mask: Tensor | None = None,
    microbatch_size: int | None = None,
    loss_fn: LossFunction = F.cross_entropy,
    dropout_seeds: Tensor | None = None,
) -> ClippedSum:
    """Sum of per-example gradients, each the mean over its views, each clipped once.

    For example i, ``g_i = ∇ (1/K) Σ_k loss(f(params, views[i, k]), labels[i])`` with the mean
    inside the differentiated function, so memory grows with B·P and not with B·K·P (augmentation
    multiplicity: De et al. 2022, arXiv 2204.13650, section 3.2). Then ``Σ_i g_i · min(1, C/‖g_i‖)``
    (Abadi et al. 2016, arXiv 1607.00133, algorithm 1). An example whose gradient holds a NaN or
    an infinity (or is so large that its norm overflows), and a masked one, adds exactly zero.

    Args:
        model: the network; it is called, never changed. Its buffers, and those of its parameters
            that ``params`` leaves out (frozen ones), are used as they are.
        params: name → tensor, the parameters to differentiate by.
        views: [B, K, C, H, W] floating point.
        labels: [B] class indices (or whatever ``loss_fn`` takes, per example).
        max_grad_norm: C, the bound on each example's gradient norm.
        mask: [B] bool, False for padding; None means that all examples are real.
        microbatch_size: examples differentiated at a time, which bounds memory; None means all.
        loss_fn: mean loss of one example's views, called with logits [K, classes] and labels [K].
        dropout_seeds: [B] int64; if given, dropout masks are a function of these seeds alone, and
            so independent of batching, and any other random operation of the model is an error.
            Otherwise both draw from torch's global generator.

    Returns:
        The clipped sum; ``norms`` and ``losses`` have one entry per example, masked ones too.

    Raises:
        ValueError: ``views``, ``labels`` and ``mask`` disagree on B, C or the microbatch size is
            too small, or a parameter is of a half-precision type.
    """
    num_examples = views.shape[0]
    if views.ndim != 5:
        raise ValueError(f"views must be [B, K, C, H, W], not {tuple(views.shape)}")
    if labels.shape[0] != num_examples or (mask is not None and mask.shape != (num_examples,)):
        raise ValueError("views, labels and mask must have the same number of examples")
    if not max_grad_norm >= SMALLEST_CLIP:
        raise ValueError(f"max_grad_norm must be at least {SMALLEST_CLIP}, not {max_grad_norm}")
    if microbatch_size is not None and microbatch_size < 1:
        raise ValueError(f"microbatch_size must be positive, not {microbatch_size}")
    if any(p.dtype not in (torch.float32, torch.float64) for p in params.values()):
        raise ValueError("params must be float32 or float64: sums of shorter types miss C")
    if mask is None:
        mask = torch.ones(num_examples, dtype=torch.bool, device=views.device)

    total = {name: torch.zeros_like(p) for name, p in params.items()}
    norms, losses = [], []
    for start in range(0, num_examples, microbatch_size or max(num_examples, 1)):
        part = slice(start, start + (microbatch_size or num_examples))
        seeds = None if dropout_seeds is None else dropout_seeds[part]
        gradients, part_losses = _per_example_gradients(
            model, params, views[part], labels[part], loss_fn, seeds
        )
        norms.append(_clip_and_add(total, gradients, mask[part], max_grad_norm))
        losses.append(part_losses)
    empty = views.new_zeros(0)
    return ClippedSum(
        gradients=total,
        norms=torch.cat(norms) if norms else empty,
        losses=torch.cat(losses) if losses else empty,
        sensitivity=max_grad_norm,
    )


def _per_example_gradients(
    model: nn.Module,
    params: Mapping[str, Tensor],
    views: Tensor,
    labels: Tensor,
    loss_fn: LossFunction,
    dropout_seeds: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Name → [B, …] gradients and [B] losses."""
    # Tensors that are not differentiated: frozen parameters (detached) and buffers.
    constants = {name: p.detach() for name, p in model.named_parameters() if name not in params}
    constants.update(model.named_buffers())

    def mean_loss(
        params: Mapping[str, Tensor], views: Tensor, label: Tensor, seed: Tensor | None
    ) -> Tensor:
        with KeyedDropout(seed):
            logits = functional_call(model, ({**constants, **params}, {}), (views,))
        return loss_fn(logits, label.expand(len(views), *label.shape))

    per_example = vmap(
        grad_and_value(mean_loss),
        in_dims=(None, 0, 0, None if dropout_seeds is None else 0),
        randomness="different" if dropout_seeds is None else "error",
    )
    gradients, losses = per_example(dict(params), views, labels, dropout_seeds)
    return gradients, losses.detach()


def _clip_and_add(
    total: dict[str, Tensor], gradients: Mapping[str, Tensor], mask: Tensor, max_grad_norm: float
) -> Tensor:
    """Adds the clipped gradients of B examples to ``total``; returns their [B] norms."""
    norms_b = _norms(gradients)
    counted_b = mask & norms_b.isfinite()
    if not counted_b.all():
        for g in gradients.values():
            g[~counted_b] = 0  # not a factor of zero: 0 · NaN is NaN
    factor_b = (_SLACK * max_grad_norm / norms_b).clamp(max=1.0).where(counted_b, 0.0)
    for name, g in gradients.items():
        total[name] += torch.einsum("b,b...->...", factor_b.to(g.dtype), g)
    return norms_b.to(next(iter(gradients.values())).dtype)


def _norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """[B] float64 norms over all parameters.

    torch adds up a float32 norm nearly in sequence, which is 4e-4 short at 10⁷ numbers: an example
    would be clipped to more than C. Norms of rows of 256, joined in float64, are good to 1e-7 and
    as fast. A finite gradient whose squares overflow has norm infinity and is left out.
    """
    per_tensor = []
    for gradient in gradients.values():
        flat = gradient.reshape(len(gradient), -1)
        whole = flat.shape[1] - flat.shape[1] % _NORM_ROW
        rows = flat[:, :whole].reshape(len(flat), whole // _NORM_ROW, _NORM_ROW)
        row_norms = torch.linalg.vector_norm(rows, dim=2).double()
        pieces = torch.cat([row_norms, flat[:, whole:].double()], dim=1)
        per_tensor.append(torch.linalg.vector_norm(pieces, dim=1))
    norms_b: Tensor = torch.linalg.vector_norm(torch.stack(per_tensor), dim=0)
    return norms_b
