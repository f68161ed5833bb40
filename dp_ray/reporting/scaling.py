"""What more workers would bring, in words: what ``dp-ray plan --workers`` adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dp_ray.reporting.words import duration
from dp_ray.training.scaling import Network, Work, release_seconds_per_parameter, step_time

_WORTH_IT = 0.5
"""Of the workers' time; below, most of it is not spent on examples."""

_PARTS = ("compute", "padding", "imbalance", "network", "release")


def scaling_facts(
    plan: dict[str, Any],
    workers: Sequence[int],
    *,
    latency_us: float,
    bandwidth_gbit: float,
) -> dict[str, Any]:
    """Predicted times for each number of workers, were each on a machine like this one.

    Args:
        plan: as :func:`~dp_ray.reporting.plan.plan_facts` has it, measured with the threads that a
            worker of the configuration has.
        workers: the W to predict for.
        latency_us: α of the network, in microseconds.
        bandwidth_gbit: bandwidth of one worker's link, in Gbit/s.
    """
    work = Work(
        num_examples=plan["num_examples"],
        expected_batch_size=plan["expected_batch_size"],
        microbatch_size=plan["microbatch_size"],
        microbatch_seconds=plan["microbatch_seconds"],
        parameters=plan["parameters"],
        release_seconds_per_parameter=release_seconds_per_parameter(),
    )
    network = Network(latency_us * 1e-6, 8e-9 / bandwidth_gbit)
    return {
        "microbatch_size": work.microbatch_size,
        "microbatch_seconds": work.microbatch_seconds,
        "release_seconds_per_parameter": work.release_seconds_per_parameter,
        "latency_us": latency_us,
        "bandwidth_gbit": bandwidth_gbit,
        "table": [_row(work, count, network, plan["steps"]) for count in workers],
    }


def _row(work: Work, workers: int, network: Network, steps: int) -> dict[str, float]:
    alone, step = step_time(work, 1, network).total, step_time(work, workers, network)
    return {
        "workers": workers,
        "step_seconds": step.total,
        "compute_seconds": step.compute,
        "padding_seconds": step.padding,
        "imbalance_seconds": step.imbalance,
        "network_seconds": step.network,
        "release_seconds": step.release,
        "speed_up": alone / step.total,
        "efficiency": alone / step.total / workers,
        "run_seconds": steps * step.total,
    }


def describe_scaling(facts: dict[str, Any]) -> str:
    """Lines for the terminal."""
    lines = [
        "scaling       predicted (docs/scaling.md), each worker on a machine like this one, with a "
        "link of its own",
        f"              assumed: {facts['latency_us']:g} µs a message (--latency-us), "
        f"{facts['bandwidth_gbit']:g} Gbit/s (--bandwidth-gbit)",
        f"              measured here: {facts['microbatch_seconds']:.4g} s a microbatch of "
        f"{facts['microbatch_size']}, {1e9 * facts['release_seconds_per_parameter']:.0f} ns a "
        "parameter for noise and update",
        "",
        "              of a step, in seconds:",
        "workers     step s   compute   padding imbalance   network   release  speed-up  "
        "efficiency  run",
    ]
    for row in facts["table"]:
        parts = [row[f"{name}_seconds"] for name in ("step", *_PARTS)]
        lines.append(
            f"{row['workers']:7d} "
            + "".join(f"{seconds:10.4f}" for seconds in parts)
            + f"{row['speed_up']:10.2f}{row['efficiency']:11.0%}   {duration(row['run_seconds'])}"
        )
    return "\n".join([*lines, "", _advice(facts["table"])])


def _advice(table: list[dict[str, Any]]) -> str:
    fastest = min(table, key=lambda row: row["step_seconds"])
    largest = max(_PARTS, key=lambda name: fastest[f"{name}_seconds"])
    text = (
        f"Of these, W = {fastest['workers']} is fastest; there, {largest} takes "
        f"{fastest[f'{largest}_seconds'] / fastest['step_seconds']:.0%} of a step"
    )
    worth = [row["workers"] for row in table if row["efficiency"] > _WORTH_IT]
    if worth:
        text += f". Efficiency is above {_WORTH_IT:.0%} up to W = {max(worth)}"
    return text + "."
