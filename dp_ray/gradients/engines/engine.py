"""The ways to compute the clipped sum of one microbatch: one function, run plainly or compiled.

Shapes: B units, K views of each; C is ``max_grad_norm``. All engines give the same sum up to
rounding (1e-5 of its largest entry, for networks without kinks). Plain ``vmap`` is the reference:
it knows nothing of layer types.

Compiled: the function is traced by ``make_fx`` on tensors without values, into a flat graph that
cannot depend on data, and the graph is compiled for its one shape. Dynamo alone would trace module
code again for each configuration, guard it on each call, and stop at modes and at custom rules.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from dp_ray.gradients.clipping import Clipping, clip_and_sum
from dp_ray.gradients.dropout import KeyedDropout
from dp_ray.gradients.engines.layer_rules import PerExampleConvolutions

LossFunction = Callable[..., Tensor]
"""Maps outputs [K, …] and labels [K, …] of one unit's views to a scalar, their mean loss; and with
``weights=`` [K], of sum 1, to their weighted loss. Without weights it gets two arguments."""

EngineName = Literal["vmap", "per_layer", "vmap_compiled", "per_layer_compiled"]

Precision = Literal["float32", "tf32", "bfloat16"]

Sums = tuple[dict[str, Tensor], Tensor, Tensor]
"""Clipped sum per parameter, norms [B], losses [B]."""

_Inputs = tuple[
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


class EngineError(Exception):
    """An engine that cannot be used here: no compiler, or a network that it cannot take."""


class Engine:
    """Computes clipped sums of microbatches, one way.

    A compiled engine keeps its graphs: a model may get other parameters and buffers between calls,
    but other layers or attributes go unnoticed.

    Args:
        name: ``vmap``, or ``per_layer`` with its own rule for convolutions; or these, compiled.
        precision: in what the network computes. Parameters, per-example gradients, their norms and
            the sum are those of the parameters' type all the same, at least float32. ``tf32`` lets
            an NVIDIA GPU round the factors of products and convolutions to 11 bits; on a CPU it is
            float32.
    """

    def __init__(self, name: EngineName = "vmap", precision: Precision = "float32") -> None:
        self.name: EngineName = name
        self.precision: Precision = precision
        self._compiled: dict[object, Callable[..., Sums]] = {}

    @property
    def is_compiled(self) -> bool:
        """Whether torch.compile is used."""
        return self.name.endswith("_compiled")

    @property
    def num_compiled(self) -> int:
        """Graphs that were compiled so far; one if all microbatches had one shape."""
        return len(self._compiled)

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
            EngineError: the compiler is missing or failed.
        """
        # Tensors that are not differentiated: frozen parameters (detached) and buffers.
        constants = {name: p.detach() for name, p in model.named_parameters() if name not in params}
        constants.update(model.named_buffers())

        def function(*inputs: *_Inputs) -> Sums:
            return self._sum(model, clipping, loss_fn, *inputs)

        # An input of the graph and no constant of it: it may change from step to step.
        # Filled on the device: a copy from the host would wait for all work before it.
        norm = torch.full((), max_grad_norm, dtype=torch.float64, device=views.device)
        named = dict(params), constants
        inputs: _Inputs = (*named, views, labels, mask, norm, weights, dropout_seeds)
        # Whatever the caller computes in: norms and sums are not shortened.
        with torch.autocast(views.device.type, enabled=False), self._tf32(views.device):
            if not self.is_compiled:
                return function(*inputs)
            training = tuple(module.training for module in model.modules())
            key = (model, training, loss_fn, clipping, _signature(inputs))
            with torch.no_grad():
                if key not in self._compiled:
                    with _attributes_kept(model):
                        self._compiled[key] = _compile(function, inputs)
                return self._compiled[key](*inputs)

    def _sum(
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
        dtype = next(iter(params.values())).dtype

        def unit_loss(
            params: Mapping[str, Tensor],
            views: Tensor,
            label: Tensor,
            weights: Tensor | None,
            seed: Tensor | None,
        ) -> Tensor:
            with KeyedDropout(seed), self._rules(), self._autocast(views.device):
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

    def _rules(self) -> AbstractContextManager[object]:
        per_layer = self.name.startswith("per_layer")
        return PerExampleConvolutions() if per_layer else nullcontext()

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


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back what modules hold: a helper tensor that a trace leaves behind has no values."""
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)


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


def _signature(inputs: _Inputs) -> object:
    """What a compiled graph was made for; threads too, because loops are cut for them."""
    params, constants, *tensors = inputs
    named = [(name, t) for part in (params, constants) for name, t in part.items()]
    described = [(name, t.shape, t.dtype, t.device) for name, t in named]
    rest = [t if t is None else (t.shape, t.dtype, t.device) for t in tensors]
    return (*described, *rest, torch.get_num_threads())


def _compile(function: Callable[..., Sums], inputs: _Inputs) -> Callable[..., Sums]:
    """Traces and compiles; calls once, because compilation happens at the first call."""
    try:
        # That there is no CUDA to compile for is no news.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # The error says what failed; the compiler prints its whole program besides.
        logging.getLogger("torch._inductor.scheduler").setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own use of torch
            graph = make_fx(function, tracing_mode="fake")(*inputs)
            compiled: Callable[..., Sums] = torch.compile(graph, dynamic=False, fullgraph=True)
            compiled(*inputs)
    except Exception as error:  # a compiler may fail in any way
        raise EngineError(in_one_line(error)) from error
    return compiled
