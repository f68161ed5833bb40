"""The seam of ways to compute the clipped sum of one microbatch.

Shapes: B units, K views of each, P parameters; C is ``max_grad_norm``. All engines give the same
sum up to rounding (1e-5 of its largest entry, for networks without kinks). Plain ``vmap`` is the
reference: it knows nothing of layer types.

An engine is a class in a file of its own and a line of ``registry.py``.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dp_ray.gradients.clipping import Clipping
from dp_ray.gradients.dropout import KeyedDropout

LossFunction = Callable[..., Tensor]
"""Maps outputs [K, …] and labels [K, …] of one unit's views to a scalar, their mean loss; and with
``weights=`` [K], of sum 1, to their weighted loss. Without weights it gets two arguments."""

Precision = Literal["float32", "tf32", "bfloat16"]

UnitLoss = Callable[[dict[str, Tensor], Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""Maps parameters and, of one unit, views [K, …], label, weights [K] and dropout seed [] to a
loss []."""

Sums = tuple[dict[str, Tensor], Tensor, Tensor]
"""Clipped sum per parameter, norms [B], losses [B]."""

Inputs = tuple[
    dict[str, Tensor],
    dict[str, Tensor],
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor | None,
    Tensor | None,
]
"""Parameters, constants, views [B, K, …], labels [B, …], mask [B], clipping norm [], weights
[B, K], dropout seeds [B]."""


class Engine(ABC):
    """Computes clipped sums of microbatches, one way.

    A subclass writes :meth:`sum_of`, which must not depend on values (no branch, no copy to the
    host): then it can be compiled.

    Args:
        precision: in what the network computes. Parameters, per-unit gradients, their norms and
            the sum are those of the parameters' type all the same, at least float32. ``tf32`` lets
            an NVIDIA GPU round the factors of products and convolutions to 11 bits; on a CPU it is
            float32.
    """

    name: ClassVar[str]
    """By which the registry knows it."""

    gradients_held: ClassVar[float] = 1.0
    """Vectors of P numbers that each unit of a microbatch takes; 0 where none is materialised."""

    def __init__(self, precision: Precision = "float32") -> None:
        self.precision: Precision = precision

    @property
    def num_compiled(self) -> int:
        """Graphs that were compiled so far; one if all microbatches had one shape."""
        return 0

    @property
    def uncompiled(self) -> Engine:
        """The engine that runs the network's own code: itself, unless it is a compiled one."""
        return self

    def microbatch_sum(
        self,
        model: nn.Module,
        params: Mapping[str, Tensor],
        views: Tensor,
        labels: Tensor,
        *,
        mask: Tensor,
        max_grad_norm: float,
        clipping: Clipping,
        loss_fn: LossFunction,
        weights: Tensor | None,
        dropout_seeds: Tensor | None,
    ) -> Sums:
        """See :func:`dp_ray.gradients.clipped_sum.clipped_gradient_sum`, which checks arguments.

        Raises:
            EngineError: the engine cannot be used here.
        """
        # Tensors that are not differentiated: frozen parameters (detached) and buffers.
        constants = {name: p.detach() for name, p in model.named_parameters() if name not in params}
        constants.update(model.named_buffers())
        # An input of the graph and no constant of it: it may change from step to step.
        # Filled on the device: a copy from the host would wait for all work before it.
        norm = torch.full((), max_grad_norm, dtype=torch.float64, device=views.device)
        named = dict(params), constants
        inputs: Inputs = (*named, views, labels, mask, norm, weights, dropout_seeds)
        # Whatever the caller computes in: norms and sums are not shortened.
        with torch.autocast(views.device.type, enabled=False), self._tf32(views.device):
            sums, norms, losses = self._call(model, clipping, loss_fn, inputs)
        if any(part.dtype != torch.float64 for part in sums.values()):
            raise EngineError("its sums are not float64: their rounding depends on who is in them")
        return sums, norms, losses

    @abstractmethod
    def sum_of(
        self, model: nn.Module, clipping: Clipping, loss_fn: LossFunction, *inputs: *Inputs
    ) -> Sums:
        """Return the clipped sum of a microbatch, its norms and its losses."""

    def rules(self) -> AbstractContextManager[object]:
        """Return what is active while the network runs: rules of its own for some layers."""
        return nullcontext()

    def unit_loss(
        self, model: nn.Module, constants: Mapping[str, Tensor], loss_fn: LossFunction
    ) -> UnitLoss:
        """Return the loss of one unit as a function of the parameters, to be differentiated.

        Random layers draw from the unit's dropout seed, and the network runs in the engine's
        precision.

        Args:
            model: the network.
            constants: its tensors that are not differentiated.
            loss_fn: of a unit's views.
        """

        def loss(
            params: dict[str, Tensor],
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
            like = views if views.is_floating_point() else next(iter(params.values()))
            outputs = outputs.to(like.dtype)
            labels = label.expand(len(views), *label.shape)
            if weights is None:
                return loss_fn(outputs, labels)
            return loss_fn(outputs, labels, weights=weights)

        return loss

    def _call(
        self, model: nn.Module, clipping: Clipping, loss_fn: LossFunction, inputs: Inputs
    ) -> Sums:
        return self.sum_of(model, clipping, loss_fn, *inputs)

    def _tf32(self, device: torch.device) -> AbstractContextManager[None]:
        return allow_tf32(self.precision == "tf32") if device.type == "cuda" else nullcontext()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        # Without the cache of cast weights, which would outlive vmap's wrappers.
        return torch.autocast(
            device.type,
            torch.bfloat16,
            enabled=self.precision == "bfloat16",
            cache_enabled=False,
        )


class EngineError(Exception):
    """An engine that cannot be used here: no compiler, or a network that it cannot take."""


with warnings.catch_warnings():
    # torch 2.9 advises once to use newer switches, which cannot be mixed with these.
    warnings.simplefilter("ignore")
    _ = torch.backends.cuda.matmul.allow_tf32


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Chooses, for as long as it is active, whether CUDA products of float32 may use TF32.

    torch allows it by default for convolutions and not for matrices; here both are alike.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def in_one_line(error: Exception) -> str:
    """What went wrong, short enough to be told in passing."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
