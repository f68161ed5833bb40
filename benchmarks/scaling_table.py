"""The tables of docs/scaling.md: predicted steps for P = 10⁵ … 10⁹ and W = 1 … 1024.

    python benchmarks/scaling_table.py [--latency-us 50] [--bandwidth-gbit 10]

Nothing is measured here. The time of an example is taken in proportion to P, for two kinds of
network, from what benchmarks/collectives.py and ``dp-ray plan`` measured on one core.
"""

from __future__ import annotations

import argparse

from dp_ray.training.scaling import Network, Work, step_time

WORKERS = (1, 4, 16, 64, 256, 1024)
POWERS = range(5, 10)
KINDS = {
    "dense layers, K = 1": 2.0e-9,
    "WRN-16-4 on 32×32 images, K = 4": 46e-9,
}
"""Seconds of an example, with all its views, for each parameter."""

RELEASE_S = 32e-9
EXAMPLES, EXPECTED, MICROBATCH = 50_000, 4096, 4


def work_of(parameters: int, example_s: float) -> Work:
    """A step of De et al. 2022 on CIFAR-10, with a network of that many parameters."""
    microbatch_s = MICROBATCH * example_s * parameters
    return Work(EXAMPLES, EXPECTED, MICROBATCH, microbatch_s, parameters, RELEASE_S)


def cells(work: Work, network: Network) -> list[str]:
    """Seconds, speed-up, and the largest part, for each number of workers."""
    alone = step_time(work, 1, network).total
    result = []
    for workers in WORKERS:
        step = step_time(work, workers, network)
        parts = {
            "c": step.compute,
            "i": step.padding + step.imbalance,
            "n": step.network,
            "r": step.release,
        }
        largest = max(parts, key=lambda name: parts[name])
        result.append(f"{step.total:.3g} s, ×{alone / step.total:.3g} {largest}")
    return result


def main() -> None:
    """Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-us", type=float, default=50.0)
    parser.add_argument("--bandwidth-gbit", type=float, default=10.0)
    arguments = parser.parse_args()
    network = Network(1e-6 * arguments.latency_us, 8e-9 / arguments.bandwidth_gbit)
    for kind, example_s in KINDS.items():
        print(f"\n{kind}: {1e9 * example_s:g} ns an example and parameter\n")
        print("| P | " + " | ".join(f"W = {workers}" for workers in WORKERS) + " |")
        print("| --- |" + " --- |" * len(WORKERS))
        for power in POWERS:
            row = cells(work_of(10**power, example_s), network)
            print(f"| 1e{power} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
