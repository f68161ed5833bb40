"""A plan in words: what ``dp-ray plan`` prints."""

from __future__ import annotations

from typing import Any

import torch

from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.json_text import finite
from dp_ray.models.build import build_model
from dp_ray.performance.device import local_device
from dp_ray.performance.estimate import (
    GIB,
    available_memory,
    memory_estimate,
    microbatch_seconds,
    parameter_count,
    planned_microbatch_size,
    run_seconds,
)
from dp_ray.performance.memory import peak_bytes, start_peak
from dp_ray.privacy.accounting import running_maximum
from dp_ray.reporting.words import describe_epsilon, duration, noise_in_words
from dp_ray.training.preparation import make_plan

_CURVE_POINTS = 10


def plan_facts(config: Config) -> dict[str, Any]:
    """The plan, its ε curve, and what it takes on a machine like this one; reads no data.

    Raises:
        ConfigError: it cannot be carried out; see :func:`~dp_ray.training.preparation.make_plan`.
    """
    plan = make_plan(config)
    facts = data_facts(config.data)
    model = build_model(config.model, facts)
    size = planned_microbatch_size(config, facts, model)
    device = local_device(config.cluster) if torch.cuda.is_available() else torch.device("cpu")
    start_peak(device)
    seconds = microbatch_seconds(config, facts, model.to(device), size)
    measured = peak_bytes(device)
    needed = memory_estimate(config, facts, model, size) if measured is None else measured
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
        "microbatch_seconds": seconds,
        "seconds": run_seconds(
            config, plan.steps, microbatch_size=size, microbatch_seconds=seconds
        ),
        "memory_gib_per_worker": needed / GIB,
        "memory_is_measured": measured is not None,
        "available_gib_per_worker": available_memory(config) / GIB,
    }


def describe_plan(facts: dict[str, Any]) -> str:
    """Lines for the terminal."""
    workers = facts["num_workers"]
    where = f"{workers} workers" if workers > 1 else "1 worker" if workers else "this process"
    source = "measured" if facts["memory_is_measured"] else "an estimate, within a factor of two"
    lines = [
        f"privacy       {describe_epsilon(facts['epsilon'], facts['delta'])} "
        f"(accountant: {facts['accountant']})",
        f"noise         {noise_in_words(facts)}",
        f"sampling      q = {facts['expected_batch_size']}/{facts['num_examples']} = "
        f"{facts['sample_rate']:.5f}",
        f"work          T = {facts['steps']} steps, K = {facts['views']} views, "
        f"P = {facts['parameters']:,} parameters",
        f"time          about {duration(facts['seconds'])} on {where} of this machine, "
        "start-up (a quarter of a minute with Ray) and evaluation not counted",
        f"memory        about {facts['memory_gib_per_worker']:.2f} GiB for a worker's microbatch "
        f"({source}), {facts['available_gib_per_worker']:.1f} GiB available",
        "",
        "   step       ε",
    ]
    for step, epsilon in facts["epsilon_curve"]:
        if epsilon is not None:
            share = epsilon / facts["epsilon"]
            lines.append(f"{step:7d}  {epsilon:6.3f}  {'█' * round(40 * share)}")
    return "\n".join(lines)
