"""Any engine, compiled.

Its function is traced by ``make_fx`` on tensors without values, into a flat graph that cannot
depend on data, and the graph is compiled for its one shape. Dynamo alone would trace module code
again for each configuration, guard it on each call, and stop at modes and at custom rules.

On an NVIDIA GPU the compiled kernels are replayed as one CUDA graph, where they can be captured.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from dp_ray.gradients.clipping import Clipping
from dp_ray.gradients.engines.engine import (
    Engine,
    EngineError,
    Inputs,
    LossFunction,
    Sums,
    in_one_line,
)

CUDA_GRAPHS = ("cuda",)
"""Kinds of devices for which a compiled graph's kernels are launched all at once."""


class Compiled(Engine):
    """Another engine's function, traced and compiled once for each shape.

    It keeps its graphs: a model may get other parameters and buffers between calls, but other
    layers or attributes go unnoticed.

    Args:
        engine: the one that is compiled.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.precision)
        self.name = compiled_name(engine.name)  # type: ignore[misc]
        self.gradients_held = engine.gradients_held  # type: ignore[misc]
        self._engine = engine
        self._compiled: dict[object, Callable[..., Sums]] = {}

    @property
    def uncompiled(self) -> Engine:
        """See :class:`~dp_ray.gradients.engines.engine.Engine`."""
        return self._engine

    @property
    def num_compiled(self) -> int:
        """See :class:`~dp_ray.gradients.engines.engine.Engine`."""
        return len(self._compiled)

    def sum_of(
        self, model: nn.Module, clipping: Clipping, loss_fn: LossFunction, *inputs: *Inputs
    ) -> Sums:
        """See :class:`~dp_ray.gradients.engines.engine.Engine`."""
        return self._engine.sum_of(model, clipping, loss_fn, *inputs)

    def _call(
        self, model: nn.Module, clipping: Clipping, loss_fn: LossFunction, inputs: Inputs
    ) -> Sums:
        training = tuple(module.training for module in model.modules())
        key = (model, training, loss_fn, clipping, _signature(inputs))
        with torch.no_grad():
            if key not in self._compiled:
                with _attributes_kept(model):
                    self._compiled[key] = _compile(
                        lambda *inputs: self.sum_of(model, clipping, loss_fn, *inputs), inputs
                    )
            return self._compiled[key](*inputs)


def compiled_name(name: str) -> str:
    """Return the name of the compiled form of an engine."""
    return f"{name}_compiled"


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


def _signature(inputs: Inputs) -> object:
    """What a compiled graph was made for; threads too, because loops are cut for them."""
    params, constants, *tensors = inputs
    named = [(name, t) for part in (params, constants) for name, t in part.items()]
    described = [(name, t.shape, t.dtype, t.device) for name, t in named]
    rest = [t if t is None else (t.shape, t.dtype, t.device) for t in tensors]
    return (*described, *rest, torch.get_num_threads())


def _compile(function: Callable[..., Sums], inputs: Inputs) -> Callable[..., Sums]:
    """Trace and compile; calls the result, because compilation happens at the first call."""
    try:
        # That there is no CUDA to compile for is no news.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # The error says what failed; the compiler prints its whole program besides.
        logging.getLogger("torch._inductor.scheduler").setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own use of torch
            graph = make_fx(function, tracing_mode="fake")(*inputs)
            if inputs[2].device.type in CUDA_GRAPHS:
                try:
                    return _as_cuda_graph(graph, inputs)
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # what cannot be captured can still be compiled
                    logging.getLogger(__name__).debug("no CUDA graph", exc_info=True)
            compiled: Callable[..., Sums] = torch.compile(graph, dynamic=False, fullgraph=True)
            compiled(*inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler may fail in any way
        raise EngineError(in_one_line(error)) from error
    return compiled


def _as_cuda_graph(graph: Callable[..., Sums], inputs: Inputs) -> Callable[..., Sums]:
    """Compile; kernels are launched one by one, then recorded, and replayed from the third call.

    A replay writes its results where those of the last one lie, so that callers get copies.
    """
    options: dict[str, Any] = {"triton.cudagraphs": True}
    compiled = torch.compile(graph, dynamic=False, fullgraph=True, options=options)

    def call(*inputs: *Inputs) -> Sums:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        total, norms, losses = compiled(*inputs)
        return {name: t.clone() for name, t in total.items()}, norms.clone(), losses.clone()

    for _ in range(2):
        call(*inputs)
    return call
