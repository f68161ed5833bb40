"""The reference engine: ``vmap`` of the gradient, whatever the layers are."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from dp_ray.gradients.clipping import Clipping, clip_and_sum
from dp_ray.gradients.engines.engine import Engine, LossFunction, Sums


class Vmap(Engine):
    """See :class:`~dp_ray.gradients.engines.engine.Engine`."""

    name = "vmap"

    def sum_of(
        self,
        model: nn.Module,
        clipping: Clipping,
        loss_fn: LossFunction,
        params: dict[str, Tensor],
        constants: dict[str, Tensor],
        views: Tensor,
        labels: Tensor,
        mask: Tensor,
        max_grad_norm: Tensor,
        weights: Tensor | None,
        dropout_seeds: Tensor | None,
    ) -> Sums:
        """See :class:`~dp_ray.gradients.engines.engine.Engine`."""
        optional = (None if tensor is None else 0 for tensor in (weights, dropout_seeds))
        gradients, losses = vmap(
            grad_and_value(self.unit_loss(model, constants, loss_fn)),
            in_dims=(None, 0, 0, *optional),
            randomness="different" if dropout_seeds is None else "error",
        )(params, views, labels, weights, dropout_seeds)
        total, norms = clip_and_sum(gradients, mask, max_grad_norm, clipping)
        return total, norms, losses.detach()
