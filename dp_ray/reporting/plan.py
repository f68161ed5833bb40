"""A plan in words: what ``dp-ray plan`` prints."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import nn

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts, data_facts
from dp_ray.json_text import finite
from dp_ray.models.build import build_model
from dp_ray.performance.device import local_device
from dp_ray.performance.estimate import (
    GIB,
    NOISE_BYTES,
    available_memory,
    memory_estimate,
    parameter_count,
    planned_microbatch_size,
    run_seconds,
)
from dp_ray.performance.microbatch import MicrobatchCost, microbatch_cost
from dp_ray.performance.threads import usable_cores
from dp_ray.privacy.accounting import running_maximum
from dp_ray.reporting.words import describe_epsilon, duration, noise_in_words
from dp_ray.training.preparation import make_plan

_CURVE_POINTS = 10

_REST_OF_A_STEP, _SHARED = 1.5, 1.5
"""How much longer steps take than their microbatches did: for reading, noise and messages; and
where several workers share a machine's caches. Measured on two cores, and rounded up."""


def plan_facts(config: Config, *, quick: bool = False) -> dict[str, Any]:
    """The plan, its ε curve, and what it takes on a machine like this one; reads no data.

    Args:
        config: of the run.
        quick: leave out what has to be timed; memory is an estimate then.

    Raises:
        ConfigError: it cannot be carried out; see :func:`~dp_ray.training.preparation.make_plan`.
    """
    plan = make_plan(config)
    facts = data_facts(config.data)
    model = build_model(config.model, facts)
    size = planned_microbatch_size(config, facts, model)
    available = available_memory(config)
    cost = None
    if not quick:
        on_gpu = torch.cuda.is_available()
        device = local_device(config.cluster) if on_gpu else torch.device("cpu")
        cost = microbatch_cost(config, facts, model.to(device), size)
    steps = sorted({max(plan.steps * i // _CURVE_POINTS, 1) for i in range(1, _CURVE_POINTS + 1)})
    return {
        **plan.dump(),
        "epsilon": finite(plan.epsilon),
        "epsilon_curve": [
            [step, finite(epsilon)]
            for step, epsilon in zip(
                steps, running_maximum(plan.epsilon_after(step) for step in steps), strict=True
            )
        ],
        "parameters": parameter_count(model),
        "num_workers": config.cluster.max_workers,
        "microbatch_size": size,
        "microbatch_seconds": None if cost is None else cost.fastest,
        "seconds": None if cost is None else _seconds(config, plan.steps, size, cost),
        "cores": usable_cores(),
        "cores_in_use": None if cost is None else cost.cores_in_use,
        "machine_is_busy": cost is not None and cost.busy,
        **_memory(config, facts, model, size, cost),
        "available_gib_per_worker": available / GIB,
    }


def _seconds(config: Config, steps: int, size: int, cost: MicrobatchCost) -> list[float]:
    """From the fewest to the most seconds of all steps that are to be expected."""
    fewest, most = (
        run_seconds(config, steps, microbatch_size=size, microbatch_seconds=seconds)
        for seconds in (cost.idle, cost.slowest)
    )
    return [fewest, most * _REST_OF_A_STEP * (_SHARED if config.cluster.max_workers > 1 else 1.0)]


def _memory(
    config: Config, facts: DataFacts, model: nn.Module, size: int, cost: MicrobatchCost | None
) -> dict[str, Any]:
    """Of one worker: the peak that was measured, and the noise beside it; else an estimate."""
    gpus, on_gpu = bool(config.cluster.gpus_per_worker), next(model.parameters()).is_cuda
    # A plan for a GPU may be made where there is none.
    measured = cost.peak_bytes if cost is not None and gpus == on_gpu else None
    if gpus:
        needed = memory_estimate(config, facts, model, size) if measured is None else measured
    elif measured is None:
        process = psutil.Process().memory_info().rss  # a worker has the same libraries
        needed = process + memory_estimate(config, facts, model, size)
    else:
        needed = measured + NOISE_BYTES * parameter_count(model)
    return {"memory_gib_per_worker": needed / GIB, "memory_is_measured": measured is not None}


def describe_plan(facts: dict[str, Any]) -> str:
    """Lines for the terminal."""
    source = "measured" if facts["memory_is_measured"] else "an estimate, within a factor of two"
    lines = [
        f"privacy       {describe_epsilon(facts['epsilon'], facts['delta'])} "
        f"(accountant: {facts['accountant']})",
        f"noise         {noise_in_words(facts)}",
        f"sampling      q = {facts['expected_batch_size']}/{facts['num_examples']} = "
        f"{facts['sample_rate']:.5f}",
        f"work          T = {facts['steps']} steps, K = {facts['views']} views, "
        f"P = {facts['parameters']:,} parameters",
        f"time          {_time_in_words(facts)}",
        f"memory        about {facts['memory_gib_per_worker']:.2f} GiB for a worker with "
        f"{facts['microbatch_size']} examples a microbatch ({source}), "
        f"{facts['available_gib_per_worker']:.1f} GiB available",
        "",
        "   step       ε",
    ]
    for step, epsilon in facts["epsilon_curve"]:
        if epsilon is not None:
            share = epsilon / facts["epsilon"]
            lines.append(f"{step:7d}  {epsilon:6.3f}  {'█' * round(40 * share)}")
    return "\n".join(lines)


def _time_in_words(facts: dict[str, Any]) -> str:
    if facts["seconds"] is None:
        return "not estimated (--quick)"
    workers = facts["num_workers"]
    where = f"{workers} workers" if workers > 1 else "1 worker" if workers else "this process"
    fewest, most = (duration(seconds) for seconds in facts["seconds"])
    between = f"about {most}" if fewest == most else f"{fewest} to {most}"
    text = (
        f"{between} on {where} of this machine, start-up (a quarter of a minute with Ray) and "
        "evaluation not counted"
    )
    if facts["machine_is_busy"]:
        text += (
            f"\n              This machine is busy: other programs use about "
            f"{facts['cores_in_use']:.1f} of its {facts['cores']} cores. The lower figure is for "
            "an idle one"
        )
    return text
