"""Compiled engines on a GPU replay one CUDA graph; what a CPU can show of it.

A stand-in for ``torch.compile`` writes each call's result to one place, as a replay does.
``tests/training/test_on_gpu.py`` has the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.networks import GREY, make, relative_error, trained
from torch import Tensor

from dp_ray.gradients.clipped_sum import clipped_gradient_sum
from dp_ray.gradients.engines import compiled
from dp_ray.gradients.engines.engine import EngineError, Sums
from dp_ray.gradients.engines.registry import build_engine


class Replays:
    """Stands in for ``torch.compile``.

    Attributes:
        options: of each call.
        graphs: whether a graph's kernels can be captured.
    """

    def __init__(self, *, graphs: bool = True) -> None:
        self.options: list[Any] = []
        self.graphs = graphs

    def __call__(
        self, graph: Callable[..., Sums], *, options: Any = None, **_: Any
    ) -> Callable[..., Sums]:
        self.options.append(options)
        place: list[Sums] = []

        def replay(*inputs: Any) -> Sums:
            if options is not None and not self.graphs:
                raise RuntimeError("operation not permitted when stream is capturing")
            found = graph(*inputs)
            if not place:
                place.append(found)
            for old, new in zip(flat(place[0]), flat(found), strict=True):
                old.copy_(new)
            return place[0]

        return replay


def flat(sums: Sums) -> list[Tensor]:
    return [*sums[0].values(), *sums[1:]]


def images(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 1, 28, 28, generator=generator), torch.tensor([1, 0, 9])


def swap_in(replays: Replays, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...]) -> None:
    monkeypatch.setattr(torch, "compile", replays)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr(compiled, "CUDA_GRAPHS", devices)


def sum_of(engine: Any, seed: int, **more: Any) -> Any:
    model = MODEL
    return clipped_gradient_sum(
        model, trained(model), *images(seed), max_grad_norm=1.0, engine=engine, **more
    )


MODEL = make("tanh_cnn", GREY)


def test_a_replay_leaves_the_results_of_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays()
    swap_in(replays, monkeypatch, ("cpu",))
    engine = build_engine("vmap_compiled")
    inputs = [(*images(seed), torch.ones(3, dtype=torch.bool)) for seed in (1, 2)]

    def call(views: Tensor, labels: Tensor, mask: Tensor) -> Sums:
        return engine.microbatch_sum(
            MODEL,
            trained(MODEL),
            views,
            labels,
            mask=mask,
            max_grad_norm=1.0,
            clipping="flat",
            loss_fn=torch.nn.functional.cross_entropy,
            weights=None,
            dropout_seeds=None,
        )

    first = call(*inputs[0])
    before = [tensor.clone() for tensor in flat(first)]
    second = call(*inputs[1])
    assert all(a.equal(b) for a, b in zip(flat(first), before, strict=True))
    assert not any(a.equal(b) for a, b in zip(flat(first), flat(second), strict=True))
    assert replays.options == [{"triton.cudagraphs": True}]


def test_what_cannot_be_captured_is_compiled_without(monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(graphs=False)
    swap_in(replays, monkeypatch, ("cpu",))
    found = sum_of(build_engine("vmap_compiled"), 1)
    assert replays.options == [{"triton.cudagraphs": True}, None]
    assert relative_error(found.gradients, sum_of(None, 1).gradients) < 1e-5


def test_on_a_cpu_there_is_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays()
    swap_in(replays, monkeypatch, compiled.CUDA_GRAPHS)
    sum_of(build_engine("vmap_compiled"), 1)
    assert replays.options == [None]


def test_too_little_memory_is_no_fault_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller microbatch helps; another engine need not."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for devices in (("cpu",), ("cuda",)):
        swap_in(full, monkeypatch, devices)  # type: ignore[arg-type]
        with pytest.raises(torch.OutOfMemoryError):
            sum_of(build_engine("vmap_compiled"), 1)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    swap_in(broken, monkeypatch, ("cpu",))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="no compiler"):
        sum_of(build_engine("vmap_compiled"), 1)
