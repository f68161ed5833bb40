"""A whole step of two workers with one thread each, over that of one worker with two threads.

    python benchmarks/workers_and_threads.py [--rounds 3]

Both through Ray on this machine, in turn; a step's time is the median over a run, after its first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from dp_ray.api.train import run_training
from dp_ray.config.files import parse_config

CASES: dict[str, dict[str, Any]] = {
    "WRN-16-4, B̄ = 64, K = 4": {
        "data": {"name": "fake", "num_examples": 640, "expected_batch_size": 64},
        "augment": {"views": 4, "shift": 4, "horizontal_flip": 0.5},
        "model": {"name": "wrn_16_4"},
        "privacy": {"steps": 6},
        "train": {"microbatch_size": 8, "engine": "per_layer_compiled"},
    },
    "small CNN, B̄ = 1024, K = 8": {
        "data": {
            "name": "fake",
            "num_examples": 10_240,
            "expected_batch_size": 1024,
            "channels": 1,
            "image_size": 28,
        },
        "augment": {"views": 8, "shift": 2},
        "model": {"name": "tanh_cnn"},
        "privacy": {"steps": 20},
        "train": {"microbatch_size": 64, "engine": "vmap_compiled"},
    },
}


def step_seconds(case: dict[str, Any], workers: int, threads: int) -> list[float]:
    """Of each step but the first."""
    with tempfile.TemporaryDirectory() as folder:
        steps = case["privacy"]["steps"]
        config = parse_config(
            {
                **case,
                "data": {**case["data"], "cache": str(Path(folder) / "cache")},
                "privacy": {"noise_multiplier": 1.0, "steps": steps, "delta": 1e-5},
                "optimizer": {"lr": 0.1},
                "train": {
                    **case["train"],
                    "storage_path": folder,
                    "evaluate_every": steps,
                    "checkpoint_every": steps,
                },
                "cluster": {"num_workers": workers, "threads_per_worker": threads},
                "seed": 1,
            }
        )
        run_training(config)
        curve = Path(folder) / config.name / "private/metrics.jsonl"
        lines = [json.loads(line) for line in curve.read_text().splitlines()]
    return [line["seconds"] for line in lines if "seconds" in line][1:]


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    for name, case in CASES.items():
        two: list[float] = []
        one: list[float] = []
        for _ in range(options.rounds):
            two += step_seconds(case, 2, 1)
            one += step_seconds(case, 1, 2)
        first, second = statistics.median(two), statistics.median(one)
        print(
            f"{name}: 2 workers × 1 thread {first:.3f} s, 1 worker × 2 threads {second:.3f} s, "
            f"ratio {first / second:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
