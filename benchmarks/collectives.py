"""What gloo's reduce and broadcast take, and whether dp_ray/training/scaling.py predicts steps.

    python benchmarks/collectives.py [--workers 1 2 4] [--json FILE]   measures, fits, checks
    python benchmarks/collectives.py --join RANK WORKERS ADDRESS       one process of several

All workers are processes of this machine, joined over the loopback, with one torch thread each.
The steps are those of ``dp-ray train``, ledger included, on images of noise and a network of two
layers whose width gives P. emulated_network.sh calls --join, to see gloo on slower links.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.optimize import nnls
from torch import nn

from dp_ray.artifacts.journal import Journal
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.data.store import open_dataset
from dp_ray.models.build import build_model
from dp_ray.performance.estimate import parameter_count
from dp_ray.performance.microbatch import microbatch_cost
from dp_ray.performance.threads import usable_cores
from dp_ray.training.collective import ProcessGroup
from dp_ray.training.local import NullObserver
from dp_ray.training.loop import train
from dp_ray.training.preparation import make_plan
from dp_ray.training.scaling import (
    Network,
    Work,
    broadcast_traffic,
    reduce_traffic,
    release_seconds_per_parameter,
    step_time,
)
from dp_ray.training.session import open_session
from dp_ray.training.step import ShardWorker
from dp_ray.training.task import Task

SIZES = (1, 10**5, 10**6, 10**7)
WIDTHS = {376: 40, 3760: 30, 37600: 7}  # width of the hidden layer: steps; P is 266 times it
EXAMPLES, EXPECTED, MICROBATCH = 4096, 64, 4

OPERATIONS: dict[str, tuple[torch.dtype, Callable[..., Any]]] = {
    "reduce": (torch.float64, reduce_traffic),
    "broadcast": (torch.float32, broadcast_traffic),
}


def build(*, num_classes: int, image_size: int, channels: int, width: int) -> nn.Module:
    """A network with a given number of parameters; ``collectives:build`` in a configuration."""
    pixels = channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, num_classes)
    )


def spawn(body: Callable[..., Any], workers: int, *arguments: Any) -> Any:
    """Runs ``body(*arguments)`` in each of W processes of one group; what it returns on rank 0."""
    results = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        mp.spawn(_process, (workers, store, results, body, arguments), nprocs=workers)
    return results.get()


def _process(
    rank: int, workers: int, store: str, results: Any, body: Callable[..., Any], arguments: Any
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    join(rank, workers, store)
    result = body(*arguments)
    if rank == 0:
        results.put(result)
    dist.destroy_process_group()


def join(rank: int, workers: int, store: str) -> None:
    """One thread, and a place in the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)


def time_collectives(sizes: tuple[int, ...] = SIZES, repeat: int = 9) -> list[dict[str, Any]]:
    """Seconds until the last worker has done an operation, median; all workers take part."""
    rows = []
    for name, (dtype, _) in OPERATIONS.items():
        for size in sizes:
            vector, times = torch.ones(size, dtype=dtype), []
            for _ in range(repeat):
                dist.barrier()
                started = time.perf_counter()
                if name == "reduce":
                    dist.reduce(vector, dst=0)
                else:
                    dist.broadcast(vector, src=0)
                seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
                dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
                times.append(float(seconds))
            rows.append(
                {
                    "operation": name,
                    "workers": dist.get_world_size(),
                    "parameters": size,
                    "seconds": statistics.median(times),
                }
            )
    return rows


def traffic_of(row: dict[str, Any]) -> Any:
    """What the operation of a row sends."""
    dtype, traffic = OPERATIONS[row["operation"]]
    return traffic(row["workers"], row["parameters"] * dtype.itemsize)


def fit(rows: list[dict[str, Any]], cores: int) -> Network:
    """α and β with the least sum of squared relative errors, neither below zero."""
    hop, byte = Network(1.0, 0.0, cores), Network(0.0, 1.0, cores)
    matrix = [
        [unit.seconds(traffic_of(row)) / row["seconds"] for unit in (hop, byte)] for row in rows
    ]
    (latency, per_byte), _ = nnls(matrix, [1.0] * len(rows))
    return Network(float(latency), float(per_byte), cores)


def config_of(width: int, steps: int, folder: Path) -> Config:
    """A run of so many steps that saves and evaluates at its end only."""
    return parse_config(
        {
            "data": {
                "name": "fake",
                "num_examples": EXAMPLES,
                "image_size": 16,
                "channels": 1,
                "expected_batch_size": EXPECTED,
                "cache": str(folder / "cache"),
            },
            "model": {"name": "collectives:build", "arguments": {"width": width}},
            "privacy": {"noise_multiplier": 1.0, "steps": steps, "delta": 1e-5},
            "optimizer": {"lr": 0.1},
            "train": {
                "engine": "vmap",
                "microbatch_size": MICROBATCH,
                "storage_path": str(folder / "runs"),
                "checkpoint_every": steps,
                "evaluate_every": steps,
            },
            "cluster": {"threads_per_worker": 1},
            "seed": 1,
        }
    )


def time_steps(task: Task) -> dict[str, float]:
    """Seconds of a step, of a release and of a microbatch, on rank 0; all workers take part."""
    ends: list[float] = []
    times: dict[str, list[float]] = {"release": [], "microbatch": []}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **named)
            times[name].append(time.perf_counter() - started)
            return result

        return call

    stepped = Journal.stepped

    def noted(self: Journal, *arguments: Any) -> None:
        ends.append(time.perf_counter())
        stepped(self, *arguments)

    Journal.stepped = noted  # type: ignore[method-assign]
    ShardWorker._add = timed("microbatch", ShardWorker._add)  # type: ignore[method-assign]
    if dist.get_rank() == 0:
        from dp_ray.training.coordinator import Coordinator

        Coordinator.release = timed("release", Coordinator.release)  # type: ignore[method-assign]
    device = torch.device("cpu")
    train(open_session(task, ProcessGroup(device), device=device, threads=1), NullObserver())
    # The first step warms up. The mean, not the median: the model predicts an expectation.
    return {
        "step": (ends[-1] - ends[0]) / (len(ends) - 1) if ends else 0.0,
        "release": statistics.fmean(times["release"][1:] or [0.0]),
        "microbatch": statistics.fmean(times["microbatch"][1:] or [0.0]),
    }


def measure_steps(width: int, steps: int, workers: int) -> dict[str, float]:
    """What a run took."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(width, steps, Path(folder))
        plan, run = make_plan(config), RunDirectory.of(config)
        open_dataset(config.data)  # decoded once, for all workers
        run.create(config, plan)
        result: dict[str, float] = spawn(time_steps, workers, Task(config, plan, run, "benchmark"))
    return result


def work_of(width: int) -> Work:
    """What ``dp-ray plan`` would take for the run."""
    config = config_of(width, 1, Path())
    facts = data_facts(config.data)
    model = build_model(config.model, facts)
    return Work(
        num_examples=EXAMPLES,
        expected_batch_size=EXPECTED,
        microbatch_size=MICROBATCH,
        microbatch_seconds=microbatch_cost(config, facts, model, MICROBATCH).fastest,
        parameters=parameter_count(model),
        release_seconds_per_parameter=release_seconds_per_parameter(),
    )


def check_collectives(workers: list[int]) -> tuple[Network, list[dict[str, Any]]]:
    """Measures, fits and prints."""
    rows = [row for count in workers if count > 1 for row in spawn(time_collectives, count)]
    network = fit(rows, usable_cores())
    print(
        f"α = {1e6 * network.latency_s:.0f} µs, β = {1e9 * network.seconds_per_byte:.2f} ns a byte "
        f"({8e-9 / network.seconds_per_byte:.1f} Gbit/s a core), {network.cores} cores"
    )
    print(f"{'':10s} {'W':>3s} {'P':>9s} {'measured ms':>12s} {'model ms':>9s} {'error':>6s}")
    for row in rows:
        row["model"] = network.seconds(traffic_of(row))
        print(
            f"{row['operation']:10s} {row['workers']:3d} {row['parameters']:9.0e} "
            f"{1e3 * row['seconds']:12.2f} {1e3 * row['model']:9.2f} "
            f"{row['model'] / row['seconds'] - 1:6.0%}"
        )
    return network, rows


def check_steps(workers: list[int], network: Network) -> list[dict[str, Any]]:
    """Measures whole steps and prints them beside two predictions.

    One takes t_mb and r as ``dp-ray plan`` measures them, before a run; the other as they are
    within the run of one worker, which leaves the errors of the model itself.
    """
    print(
        f"\nB̄ = {EXPECTED}, B = {MICROBATCH}; of a step in ms\n"
        f"{'P':>9s} {'W':>3s} {'measured':>9s} {'planned':>8s} {'error':>6s} {'model':>8s} "
        f"{'error':>6s}   {'t_mb':>7s} {'planned':>7s}   {'release':>8s} {'planned':>8s}   network"
    )
    rows = []
    for width, steps in WIDTHS.items():
        planned = work_of(width)
        measured = {count: measure_steps(width, steps, count) for count in workers}
        alone = measured.get(1, measured[workers[0]])
        within = replace(
            planned,
            microbatch_seconds=alone["microbatch"],
            release_seconds_per_parameter=alone["release"] / planned.parameters,
        )
        for count in workers:
            row = {
                "parameters": planned.parameters,
                "workers": count,
                **{f"{name}_seconds": value for name, value in measured[count].items()},
                "planned": asdict(step_time(planned, count, network)),
                "model": asdict(step_time(within, count, network)),
                "planned_microbatch_seconds": planned.microbatch_seconds,
            }
            rows.append(row)
            _print_step(row)
    return rows


def _print_step(row: dict[str, Any]) -> None:
    seconds = row["step_seconds"]
    planned, model = (sum(row[name].values()) for name in ("planned", "model"))
    print(
        f"{row['parameters']:9.0e} {row['workers']:3d} {1e3 * seconds:9.1f} "
        f"{1e3 * planned:8.1f} {planned / seconds - 1:6.0%} "
        f"{1e3 * model:8.1f} {model / seconds - 1:6.0%}   "
        f"{1e3 * row['microbatch_seconds']:7.2f} {1e3 * row['planned_microbatch_seconds']:7.2f}   "
        f"{1e3 * row['release_seconds']:8.2f} {1e3 * row['planned']['release']:8.2f}   "
        f"{1e3 * row['planned']['network']:7.2f}",
        flush=True,
    )


def main() -> None:
    """Prints tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--join", nargs=3, metavar=("RANK", "WORKERS", "ADDRESS"))
    arguments = parser.parse_args()
    if arguments.join:
        rank, workers, address = arguments.join
        join(int(rank), int(workers), f"tcp://{address}:29500")
        rows = time_collectives(sizes=(10**6,), repeat=3)
        for row in rows if rank == "0" else []:
            print(f"W = {row['workers']}, {row['operation']}: {row['seconds']:.3f} s")
        return
    print(f"torch {torch.__version__}, {platform.machine()}, {usable_cores()} cores")
    network, collectives = check_collectives(arguments.workers)
    steps = check_steps(arguments.workers, network)
    if arguments.json:
        result = {
            "torch": str(torch.__version__),
            "cores": network.cores,
            "latency_s": network.latency_s,
            "seconds_per_byte": network.seconds_per_byte,
            "collectives": collectives,
            "steps": steps,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
