"""Checks of stage a that have no meaning without a GPU: each says so on a CPU.

tests/training/test_on_gpu.py asserts them where the test suite finds a GPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from contenders import NETWORKS
from torch import Tensor

from dp_ray.errors import ConfigError
from dp_ray.gradients.clipped_sum import clipped_gradient_sum
from dp_ray.gradients.engines.registry import build_engine, plain_form
from dp_ray.models.build import build_model
from dp_ray.training.collective import ProcessGroup
from dp_ray.training.step import ShardWorker

if TYPE_CHECKING:
    from correctness import Checks

Found = tuple[bool | None, float, str]
"""Passed, or None where it does not apply; a figure; a detail."""

NO_GPU: Found = (None, 0.0, "there is no GPU")

ROOM = 256 * 2**20
"""Bytes that are left to a run which is to want more."""

TOO_LARGE = 4096
"""B that wants more: of digits, with 16 views, about 2 GiB."""


def unhindered(checks: Checks, engine: str) -> Found:
    """A shard's sum with every hidden wait for the GPU made an error."""
    if checks.device.type != "cuda":
        return NO_GPU
    add_up = ShardWorker.clipped_sum

    def strict(worker: ShardWorker, *inputs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return add_up(worker, *inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    fields = {"privacy.steps": 2, "train.engine": engine}
    config = checks.config(f"unhindered-{engine}", on_device=True, **fields)
    with patch.object(ShardWorker, "clipped_sum", strict):
        checks.train(config)
    return True, 0.0, "no copy to the host from draw to sum"


def replayed(checks: Checks, engine: str) -> Found:
    """Sums of several microbatches by one CUDA graph, against the plain engine's."""
    if checks.device.type != "cuda":
        return NO_GPU
    from torch._dynamo.utils import counters

    network, facts = NETWORKS["small CNN"]
    model = build_model(network, facts, init_seed=0).to(checks.device)
    params = {name: p.detach() for name, p in model.named_parameters()}
    labels = torch.arange(8, device=checks.device) % facts.num_classes

    def summed(name: str, kept: dict[str, Any], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        views = torch.randn(8, 2, 1, 28, 28, generator=generator).to(checks.device)
        engine = kept.setdefault(name, build_engine(name))
        found = clipped_gradient_sum(model, params, views, labels, max_grad_norm=1.0, engine=engine)
        return torch.cat([g.flatten() for g in found.gradients.values()])

    kept: dict[str, Any] = {}
    before = counters["inductor"]["cudagraph_skips"]
    ours = [summed(engine, kept, seed) for seed in range(4)]
    theirs = [summed(plain_form(engine), kept, seed) for seed in range(4)]
    far = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    skipped = counters["inductor"]["cudagraph_skips"] - before
    said = f"of the largest entry, 4 microbatches; {skipped} graphs could not be captured"
    return far <= 1e-5 and not skipped, far, said


def too_little_memory(checks: Checks) -> Found:
    """A microbatch that does not fit: one line, no charge, and the size that it names fits."""
    if checks.device.type != "cuda":
        return NO_GPU
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + ROOM) / total)
    fields = {"privacy.steps": 1, "augment.views": 16}
    try:
        config = checks.config(
            "too-large", on_device=True, **fields, **{"train.microbatch_size": TOO_LARGE}
        )
        try:
            checks.train(config)
        except ConfigError as error:
            said = str(error)
        else:
            return False, 0.0, f"{TOO_LARGE} examples fitted"
        named = re.search(r"Set it to (\d+), which fits", said)
        if named is None or checks.charges(config):
            return False, 0.0, said
        size = int(named[1])
        train = config.train.model_copy(update={"microbatch_size": size})
        checks.train(config.model_copy(update={"train": train}), resume=True)
        note = json.loads((checks.folder(config) / "private" / "engine.json").read_text())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    peak = note["peak_bytes"] / 2**20
    return 0 < peak <= ROOM / 2**20, float(size), f"examples fit; {peak:.0f} MiB at the peak"


def several(checks: Checks) -> Found:
    """A reduce and a broadcast of two GPUs by nccl."""
    if checks.device.type != "cuda" or torch.cuda.device_count() < 2:
        return None, 0.0, "there are no two GPUs"
    file = checks.options.work / "nccl"
    file.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_exchange, (str(file),), nprocs=2)
    return True, 2.0, "GPUs: float64 sums and int64 numbers arrive whole"


def _exchange(rank: int, file: str) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{file}", rank=rank, world_size=2)
    group = ProcessGroup(device)
    vector = torch.full((100_001,), 2.0**-40 + rank, dtype=torch.float64, device=device)
    group.reduce_(vector)
    numbers = torch.tensor([2**60 + 1, 3]) if rank == 0 else torch.zeros(2, dtype=torch.int64)
    group.broadcast_(numbers)
    assert numbers.tolist() == [2**60 + 1, 3]
    if rank == 0:
        assert bool((vector == 1 + 2.0**-39).all())
    dist.destroy_process_group()
    Path(file).unlink(missing_ok=True)
