"""How much memory a microbatch needs, and how long a run takes, before any data is read.

Figures of a GPU come from measurement, once a run is there: ``engine_trial.py``, ``memory.py``.
"""

from __future__ import annotations

import math
import time
from typing import Any

import psutil
import torch
from torch import nn

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError
from dp_ray.gradients.clipped_sum import clipped_gradient_sum
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.gradients.engines.vmap import Vmap
from dp_ray.gradients.layout import ParameterLayout, trained_parameters
from dp_ray.performance.allocator import keep_freed_memory
from dp_ray.performance.memory import does_not_fit, size_that_fits
from dp_ray.performance.threads import usable_cores, worker_threads

GIB = 2.0**30


def memory_estimate(
    config: Config, facts: DataFacts, model: nn.Module, microbatch_size: int
) -> float:
    """Bytes that one worker needs: activations of B·K views, the engine's gradients, the noise.

    The noise of a step is drawn while its sum is computed, into 8·P bytes of rank 0's memory: they
    count on a CPU, where the network uses that memory too. Activations are counted on one blank
    image: the outputs of all layers, twice (forward values kept, and their gradients). It is a
    rough figure, within a factor of two.
    """
    counted = 0
    examples, views = microbatch_size, config.augment.views

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal counted
        counted += output.numel() if isinstance(output, torch.Tensor) else 0

    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        device = next(model.parameters()).device
        model(torch.zeros(1, facts.channels, facts.image_size, facts.image_size, device=device))
    for handle in handles:
        handle.remove()
    parameters = parameter_count(model)
    pixels = facts.channels * facts.image_size**2
    wanted = config.train.engine
    held = build_engine(Vmap.name if wanted == "auto" else wanted).gradients_held * examples
    noise = 0 if config.cluster.gpus_per_worker else 2
    return 4.0 * (2 * examples * views * (counted + pixels) + (held + 4 + noise) * parameters)


def planned_microbatch_size(config: Config, facts: DataFacts, model: nn.Module) -> int:
    """B as given; else, where nothing was measured, 32, or as many as half of the memory holds."""
    if config.train.microbatch_size is not None:
        return config.train.microbatch_size
    size, available = 32, available_memory(config)
    while size > 1 and memory_estimate(config, facts, model, size) > available / 2:
        size //= 2
    return size


def available_memory(config: Config) -> float:
    """Bytes that one worker may use, were all on this machine; of a GPU, its share of one."""
    gpus = config.cluster.gpus_per_worker
    if gpus and torch.cuda.is_available():
        return min(gpus, 1.0) * torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().available / max(config.cluster.max_workers, 1)


def check_memory(config: Config, facts: DataFacts, model: nn.Module) -> None:
    """Refuse microbatches that do not fit into this machine's memory.

    On a GPU only what cannot fit even if the estimate is twice too high: the rest is found out
    there, before the first charge.

    Raises:
        ConfigError: they do not; the message gives both sizes.
    """
    size = planned_microbatch_size(config, facts, model)
    needed = memory_estimate(config, facts, model, size)
    if config.cluster.address is not None:
        return  # the workers' machines are not this one
    available = available_memory(config)
    doubt = 2 if config.cluster.gpus_per_worker else 1
    if needed > doubt * available:
        views = config.augment.views
        raise ConfigError(
            "train.microbatch_size",
            size,
            f"{size} examples × {views} views need about {needed / GIB:.1f} GiB in each worker (an "
            f"estimate), which has {available / GIB:.1f}",
            "Lower it (results do not depend on it), or augment.views, or cluster.num_workers",
        )


def microbatch_seconds(
    config: Config, facts: DataFacts, model: nn.Module, microbatch_size: int
) -> float:
    """Time of one microbatch of blank images where the model is, with a worker's share of threads.

    Raises:
        ConfigError: a GPU has no memory for it; the message names a size that fits.
    """
    keep_freed_memory()  # as workers do
    try:
        return _microbatch_seconds(config, facts, model, microbatch_size)
    except torch.OutOfMemoryError:
        pass  # continued below, where the error no longer holds what was computed
    fitting = size_that_fits(
        microbatch_size, lambda size: _microbatch_seconds(config, facts, model, size)
    )
    raise does_not_fit(microbatch_size, fitting, config.augment.views)


def _microbatch_seconds(
    config: Config, facts: DataFacts, model: nn.Module, microbatch_size: int
) -> float:
    params, views, side = trained_parameters(model), config.augment.views, facts.image_size
    device = next(model.parameters()).device
    images = torch.zeros(microbatch_size, views, facts.channels, side, side, device=device)
    labels = torch.zeros(microbatch_size, dtype=torch.int64, device=device)
    seeds = torch.zeros(microbatch_size, dtype=torch.int64, device=device)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(worker_threads(config.cluster, config.cluster.max_workers))
    try:
        best = math.inf
        for _ in range(3):  # the first warms up
            started = time.perf_counter()
            clipped_gradient_sum(
                model, params, images, labels, max_grad_norm=1.0, dropout_seeds=seeds
            ).norms.cpu()  # a GPU has not ended before
            best = min(best, time.perf_counter() - started)
            if best > 1.0:  # beside which the first call's preparations do not count
                break
    finally:
        torch.set_num_threads(threads_before)
    return best


def run_seconds(
    config: Config, steps: int, *, microbatch_size: int, microbatch_seconds: float
) -> float:
    """Expected time of all steps, were every worker on a machine like this one."""
    # More workers than cores take turns.
    parallel = min(max(config.cluster.max_workers, 1), usable_cores())
    share = config.data.expected_batch_size / parallel
    return steps * math.ceil(share / microbatch_size) * microbatch_seconds


def parameter_count(model: nn.Module) -> int:
    """P."""
    return ParameterLayout.of(model).size
