"""How much memory a microbatch needs, and how long a run takes, before any data is read.

Figures of a GPU come from measurement, once a run is there: ``engine_trial.py``, ``memory.py``.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import nn

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.gradients.engines.vmap import Vmap
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.performance.threads import usable_cores

GIB = 2.0**30

NOISE_BYTES = 8
"""Of a parameter: the noise of the next step, which rank 0 draws while a sum is computed."""


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
    noise = 0 if config.cluster.gpus_per_worker else NOISE_BYTES
    floats = 2 * examples * views * (counted + pixels) + (held + 4) * parameters
    return 4.0 * floats + noise * parameters


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


def run_seconds(
    config: Config, steps: int, *, microbatch_size: int, microbatch_seconds: float
) -> float:
    """Expected time of all steps, were every worker on a machine like this one."""
    # More workers than cores take turns.
    parallel = min(max(config.cluster.max_workers, 1), usable_cores())
    share = config.data.expected_batch_size / parallel
    return steps * microbatches_of_a_step(share, microbatch_size) * microbatch_seconds


def microbatches_of_a_step(examples: float, microbatch_size: int) -> float:
    """Expected microbatches of a draw of so many examples: the last one is padded."""
    return examples / microbatch_size + 0.5


def parameter_count(model: nn.Module) -> int:
    """P."""
    return ParameterLayout.of(model).size
