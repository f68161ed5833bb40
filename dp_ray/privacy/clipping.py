"""Norms of per-example gradients, and the sum of what is left of them after clipping.

Shapes: B examples; C is ``max_grad_norm``. No step depends on values (no branch, no copy to the
host), so a compiler may fuse all of it into one pass over the B·P numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_NORM_ROW = 256

_SLACK = 1 - 2.0**-18
"""Clipped to this part of C, so that the rounding of a norm and of a product does not carry it past
C. The sum is taken in float64: in float32 its rounding would depend on who shares a microbatch."""

SMALLEST_CLIP = 1e-9
"""Squares of float32 numbers vanish below about 1e-19: a much smaller C would clip nothing."""


def clip_and_sum(
    gradients: Mapping[str, Tensor], mask: Tensor, max_grad_norm: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum over B examples of their clipped gradients.

    An example adds exactly zero if it is masked, or if its gradient holds a NaN or an infinity or
    is so large that its norm overflows.

    Args:
        gradients: name → [B, …] float32 or float64.
        mask: [B] bool, False for examples that are padding.
        max_grad_norm: C.

    Returns:
        name → float64 sum of the parameter's shape, and the [B] norms before clipping.
    """
    norms_b = per_example_norms(gradients)
    counted_b = mask & norms_b.isfinite()
    factor_b = (_SLACK * max_grad_norm / norms_b).clamp(max=1.0).where(counted_b, 0.0)
    total = {}
    for name, g in gradients.items():
        flat = g.reshape(len(g), -1).where(counted_b[:, None], 0.0)  # 0 · NaN is NaN
        clipped = flat * factor_b.to(g.dtype)[:, None]
        total[name] = clipped.sum(dim=0, dtype=torch.float64).view(g.shape[1:])
    return total, norms_b.to(next(iter(gradients.values())).dtype)


def per_example_norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """[B] float64 L2 norms over all parameters.

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
