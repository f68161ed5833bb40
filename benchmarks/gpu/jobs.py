"""What stage b measures, in order of value: a process for each job, so that graphs compile at once.

Shapes: B examples, K views. B·K is about what fills a GPU: 2048 images of 32 pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from contenders import Case

IMAGES = {"WRN-16-4": 2048, "WRN-40-4": 1024, "NF-ResNet-50": 128, "ViT-B/16": 128}
"""B·K of a network."""

COMPILING_S, EAGER_S = 130.0, 60.0
"""Time limits of a job, the start of its process included."""

SMOKE_S = 600.0
"""The same for a smoke run, which a busy machine may make slow."""


@dataclass(frozen=True)
class Job:
    """Steps that one process measures, one after the other.

    Attributes:
        case: network and shape.
        precision: float32, tf32 or bfloat16.
        steps: engines, or ``non-private`` and ``non-private compiled``.
        limit_s: after which the process is killed.
        variant: what else is set: ``no CUDA graph``, ``channels_last`` (images in that layout; the
            compiler chooses layouts itself), ``no cudnn.benchmark``, ``math attention`` (whose
            gradients vmap takes as products of matrices) or nothing.
        profile: whether a profile of one call of each step is left.
    """

    case: Case
    precision: str
    steps: tuple[str, ...]
    limit_s: float
    variant: str = ""
    profile: bool = False


def jobs(device: str, *, smoke: bool) -> list[Job]:
    """All of them."""
    return list(_smoke(device) if smoke else _all(device))


def _smoke(device: str) -> Iterator[Job]:
    small = Case("small CNN", 8, 4, device)
    steps = ("per_layer", "non-private", "per_layer_compiled", "non-private compiled")
    yield Job(small, "float32", steps, SMOKE_S, profile=True)
    wide = Case("WRN-16-4", 2, 2, device)
    yield Job(wide, "bfloat16", ("per_layer", "non-private"), SMOKE_S)
    yield Job(wide, "bfloat16", ("per_layer",), SMOKE_S, variant="channels_last")


def _case(network: str, views: int, device: str, scale: float = 1.0) -> Case:
    return Case(network, max(int(IMAGES[network] * scale) // views, 1), views, device)


def _all(device: str) -> Iterator[Job]:
    compiled, baseline = "per_layer_compiled", "non-private compiled"
    wide = {views: _case("WRN-16-4", views, device) for views in (1, 4, 16)}
    first = wide[16]
    yield Job(first, "bfloat16", (compiled,), COMPILING_S, profile=True)
    yield Job(first, "bfloat16", (baseline,), COMPILING_S, profile=True)
    yield Job(first, "tf32", (compiled,), COMPILING_S)
    yield Job(first, "tf32", (baseline,), COMPILING_S)
    yield Job(first, "bfloat16", ("per_layer", "non-private"), EAGER_S, profile=True)
    yield Job(wide[4], "bfloat16", (compiled,), COMPILING_S)
    yield Job(wide[1], "bfloat16", (compiled,), COMPILING_S)
    vit, resnet = _case("ViT-B/16", 4, device), _case("NF-ResNet-50", 4, device)
    yield Job(vit, "bfloat16", ("vmap", "non-private"), EAGER_S)
    yield Job(resnet, "bfloat16", ("per_layer", "non-private"), EAGER_S)
    yield Job(vit, "bfloat16", ("vmap",), EAGER_S, variant="math attention")
    yield Job(vit, "bfloat16", ("vmap_compiled",), COMPILING_S)
    yield Job(vit, "bfloat16", (baseline,), COMPILING_S)
    yield Job(first, "bfloat16", ("vmap",), EAGER_S)
    deep = _case("WRN-40-4", 16, device)
    yield Job(deep, "bfloat16", (compiled,), COMPILING_S)
    yield Job(deep, "bfloat16", (baseline,), COMPILING_S)
    yield Job(first, "tf32", ("per_layer", "non-private", "vmap"), EAGER_S)
    yield Job(first, "bfloat16", (compiled,), COMPILING_S, variant="no CUDA graph")
    yield Job(first, "bfloat16", ("per_layer", "vmap"), EAGER_S, variant="channels_last")
    yield Job(first, "bfloat16", ("per_layer",), EAGER_S, variant="no cudnn.benchmark")
    for scale in (0.25, 0.5, 2.0):
        case = _case("WRN-16-4", 16, device, scale)
        yield Job(case, "bfloat16", ("per_layer",), EAGER_S)
    yield Job(_case("WRN-16-4", 16, device, 2.0), "bfloat16", (compiled,), COMPILING_S)
    yield Job(resnet, "bfloat16", (compiled,), COMPILING_S)
    yield Job(resnet, "bfloat16", (baseline,), COMPILING_S)
    yield Job(first, "bfloat16", ("vmap_compiled",), COMPILING_S)
    for views in (4, 1):
        yield Job(_case("WRN-40-4", views, device), "bfloat16", (compiled,), COMPILING_S)
        yield Job(wide[views], "tf32", (compiled,), COMPILING_S)
    for case in (vit, resnet, deep):
        steps = ("vmap",) if case is vit else ("per_layer",)
        yield Job(case, "tf32", (*steps, "non-private"), EAGER_S)
    yield Job(first, "float32", ("per_layer", "non-private"), EAGER_S)
