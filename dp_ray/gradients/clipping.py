"""Norms of per-example gradients, and the sum of what is left of them after clipping.

Shapes: B examples, L layers; C is ``max_grad_norm``. No step depends on values (no branch, no copy
to the host), so a compiler may fuse all of it into one pass over the B·P numbers.

Whichever clipping: an example's part of the sum has norm C at most, so one example more or less
moves the sum by C at most.

- ``flat``: g · min(1, C/‖g‖) (Abadi et al. 2016, arXiv 1607.00133, algorithm 1).
- ``automatic``: g · C/(‖g‖ + γ) with γ = 0.01, which lifts small gradients too (AUTO-S: Bu et al.
  2023, arXiv 2206.07136, section 4).
- ``per_layer``: each layer's part to C/√L by itself, so that the whole has norm √(L · C²/L) = C at
  most (McMahan et al. 2018, arXiv 1710.06963, section 3). A layer is a module's own parameters:
  weight, bias, gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

_NORM_ROW = 64
"""Squares that are added up in float32. In whatever order that is done, the norm of a row is short
by less than 33 · 2⁻²⁴ of itself: half of (63 additions and a product), and the root."""

_SLACK = 1 - 2.0**-18
"""Clipped to this part of C. Of the 64 · 2⁻²⁴ that this leaves, a norm takes 33, the rounding of a
factor, of a product and of all else one each; the other 28 are for the sum. It is taken in float64:
in float32 its rounding would depend on who shares a microbatch. docs/privacy.md has the proof."""

_STABILITY = 0.01
"""γ of automatic clipping."""

Clipping = Literal["flat", "automatic", "per_layer"]

SMALLEST_CLIP = 1e-9
"""Squares of float32 numbers vanish below about 1e-19: a much smaller C would clip nothing."""


def clip_and_sum(
    gradients: Mapping[str, Tensor],
    mask: Tensor,
    max_grad_norm: Tensor,
    clipping: Clipping,
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum over B examples of their clipped gradients.

    An example adds exactly zero if it is masked, or if its gradient holds a NaN or an infinity or
    is so large that its norm overflows.

    Args:
        gradients: name → [B, …] float32 or float64.
        mask: [B] bool, False for examples that are padding.
        max_grad_norm: C, a float64 tensor [].
        clipping: how.

    Returns:
        name → float64 sum of the parameter's shape, and the [B] norms of whole gradients before
        clipping.
    """
    norms_pb = _norms_by_parameter(gradients)
    norms_b = torch.linalg.vector_norm(torch.stack(list(norms_pb.values())), dim=0)
    counted_b = mask & norms_b.isfinite()
    factors = _factors(norms_pb, norms_b, _SLACK * max_grad_norm, clipping)
    total = {}
    for name, g in gradients.items():
        factor_b = factors[name].where(counted_b, 0.0)
        flat = g.reshape(len(g), -1).where(counted_b[:, None], 0.0)  # 0 · NaN is NaN
        clipped = flat * factor_b.to(g.dtype)[:, None]
        total[name] = clipped.sum(dim=0, dtype=torch.float64).view(g.shape[1:])
    return total, norms_b.to(next(iter(gradients.values())).dtype)


def _factors(
    norms_pb: dict[str, Tensor], norms_b: Tensor, bound: Tensor, clipping: Clipping
) -> dict[str, Tensor]:
    """For each parameter the [B] factors that leave whole gradients within the bound."""
    if clipping == "automatic":
        return dict.fromkeys(norms_pb, bound / (norms_b + _STABILITY))
    if clipping == "flat":
        return dict.fromkeys(norms_pb, (bound / norms_b).clamp(max=1.0))
    layers: dict[str, list[str]] = {}
    for name in norms_pb:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    factors = {}
    for names in layers.values():
        layer_b = torch.linalg.vector_norm(torch.stack([norms_pb[n] for n in names]), dim=0)
        factor_b = (bound / math.sqrt(len(layers)) / layer_b).clamp(max=1.0)
        factors.update(dict.fromkeys(names, factor_b))
    return factors


def _norms_by_parameter(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name → [B] float64 L2 norms.

    torch adds up a float32 norm nearly in sequence, which is 4e-4 short at 10⁷ numbers: an example
    would be clipped to more than C. So norms of short rows are joined in float64. A finite gradient
    whose squares overflow has norm infinity and is left out.
    """
    norms = {}
    for name, gradient in gradients.items():
        flat = gradient.reshape(len(gradient), -1)
        whole = flat.shape[1] - flat.shape[1] % _NORM_ROW
        rows = flat[:, :whole].reshape(len(flat), whole // _NORM_ROW, _NORM_ROW)
        row_norms = torch.linalg.vector_norm(rows, dim=2).double()
        pieces = torch.cat([row_norms, flat[:, whole:].double()], dim=1)
        norms[name] = torch.linalg.vector_norm(pieces, dim=1)
    return norms
