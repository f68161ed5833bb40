"""The reference engine: ``vmap`` of the gradient, whatever the layers are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from dp_ray.gradients.clipping import Clipping, clip_and_sum
from dp_ray.gradients.dropout import KeyedDropout
from dp_ray.gradients.engines.engine import Engine, LossFunction, Sums


class Vmap(Engine):
    """See :class:`~dp_ray.gradients.engines.engine.Engine`."""

    name = "vmap"

    def rules(self) -> AbstractContextManager[object]:
        """Return what is active while the network runs: rules of its own for some layers."""
        return nullcontext()

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
        dtype = next(iter(params.values())).dtype

        def unit_loss(
            params: Mapping[str, Tensor],
            views: Tensor,
            label: Tensor,
            weights: Tensor | None,
            seed: Tensor | None,
        ) -> Tensor:
            with KeyedDropout(seed), self.rules(), self._autocast(views.device):
                outputs = functional_call(model, ({**constants, **params}, {}), (views,))
            if outputs.shape[:1] != views.shape[:1]:
                raise ValueError(
                    f"the network maps {len(views)} views to outputs of shape "
                    f"{tuple(outputs.shape)}: one row for each view is needed"
                )
            outputs = outputs.to(views.dtype if views.is_floating_point() else dtype)
            labels = label.expand(len(views), *label.shape)
            if weights is None:
                return loss_fn(outputs, labels)
            return loss_fn(outputs, labels, weights=weights)

        optional = (None if tensor is None else 0 for tensor in (weights, dropout_seeds))
        gradients, losses = vmap(
            grad_and_value(unit_loss),
            in_dims=(None, 0, 0, *optional),
            randomness="different" if dropout_seeds is None else "error",
        )(params, views, labels, weights, dropout_seeds)
        total, norms = clip_and_sum(gradients, mask, max_grad_norm, clipping)
        return total, norms, losses.detach()
