"""What the ledger adds to a step: digest of the sum, charge, and waiting for the disk.

    python benchmarks/ledger_cost.py [--steps 3]

Trains a few steps in one process, with images of noise, and compares the time that the coordinator
spends on charging with that of the whole step, both from the same run.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dp_ray.api.train import run_training
from dp_ray.artifacts.journal import Journal
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.training.coordinator import Coordinator

CASES: dict[str, dict[str, Any]] = {
    "WRN-16-4, B̄ = 256, K = 4, each step": {
        "data": {"name": "fake", "num_examples": 2560, "expected_batch_size": 256},
        "augment": {"views": 4, "shift": 4, "horizontal_flip": 0.5},
        "model": {"name": "wrn_16_4"},
        "train": {"microbatch_size": 8, "charge_every": 1},
    },
    "small CNN, B̄ = 64, K = 4, each step": {
        "data": {"name": "digits", "expected_batch_size": 64},
        "augment": {"views": 4, "shift": 1},
        "train": {"charge_every": 1},
    },
    "small CNN, B̄ = 64, K = 4, blocks of 16": {
        "data": {"name": "digits", "expected_batch_size": 64},
        "augment": {"views": 4, "shift": 1},
        "train": {"charge_every": 16},
    },
}


def config_of(case: dict[str, Any], folder: Path, steps: int) -> Config:
    """A run of so many steps that saves and evaluates at its end only."""
    return parse_config(
        {
            **case,
            "data": {**case["data"], "cache": str(folder / "cache")},
            "privacy": {"noise_multiplier": 1.0, "steps": steps, "delta": 1e-5},
            "optimizer": {"lr": 0.1},
            "train": {
                **case["train"],
                "storage_path": str(folder / "runs"),
                "checkpoint_every": steps,
                "evaluate_every": steps,
            },
            "cluster": {"num_workers": 0},
            "seed": 1,
        }
    )


def measure(config: Config) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of its charge."""
    charges: list[float] = []
    steps: list[float] = []
    charge, stepped = Coordinator._charge, Journal.stepped

    def timed_charge(self: Coordinator, *arguments: Any) -> Any:
        started = time.perf_counter()
        verdict = charge(self, *arguments)
        charges.append(time.perf_counter() - started)
        return verdict

    def noted(self: Journal, *arguments: Any) -> None:
        steps.append(arguments[-1])
        stepped(self, *arguments)

    Coordinator._charge, Journal.stepped = timed_charge, noted  # type: ignore[method-assign]
    try:
        run_training(config)
    finally:
        Coordinator._charge, Journal.stepped = charge, stepped  # type: ignore[method-assign]
    return steps[1:], charges[1:]  # the first warms up


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=5, help="of the large network; 50 of the small"
    )
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    print(f"{'':42s} {'step s':>8s} {'charge ms':>10s} {'worst ms':>9s} {'of step':>8s}")
    for name, case in CASES.items():
        count = arguments.steps if "WRN" in name else 50
        with tempfile.TemporaryDirectory() as folder:
            steps, charges = measure(config_of(case, Path(folder), count))
        step, charge = statistics.median(steps), statistics.median(charges)
        print(
            f"{name:42s} {step:8.3f} {1e3 * charge:10.3f} {1e3 * max(charges):9.3f} "
            f"{100 * charge / step:7.3f}%"
        )


if __name__ == "__main__":
    main()
