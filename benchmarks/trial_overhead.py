"""What a trial of a search costs beyond its own steps.

    python benchmarks/trial_overhead.py [--trials 6] [--workers 1]

Trials run one after the other. A trial's time is from the end of the one before it to its own end;
its overhead is that less the seconds of its steps. The first also waits for its process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from dp_ray.api.tune import run_sweep
from dp_ray.config.search import parse_sweep
from dp_ray.reporting.run_progress import TerminalProgress


def sweep(folder: Path, trials: int, workers: int) -> dict[str, Any]:
    """A search on digits, all trials alike but for C."""
    return {
        "name": "overhead",
        "data": {"name": "digits", "expected_batch_size": 512, "evaluation": "public"},
        "augment": {"views": 2, "rotation": 8.0},
        "privacy": {"epsilon": 3.0, "delta": 1e-4, "steps": 50},
        "optimizer": {"lr": 2.0},
        "train": {"storage_path": str(folder)},
        "cluster": {"num_workers": workers},
        "tune": {
            "space": {"privacy.max_grad_norm": {"log_uniform": [0.5, 2.0]}},
            "num_samples": trials,
            "max_concurrent_trials": 1,
            "privacy_mode": "public",
        },
    }


def step_seconds(trial: Path) -> float:
    """What the trial's steps took, by its own record."""
    lines = (trial / "private/metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line).get("seconds", 0.0) for line in lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        values = sweep(root, options.trials, options.workers)
        run_sweep(
            parse_sweep(values), resume=False, callbacks=[TerminalProgress(Console(stderr=True))]
        )
        trials = sorted((root / "overhead/private/trials").iterdir())
        ends = [(trial / "trial.json").stat().st_mtime for trial in trials]
        begun = (trials[0] / "private/run_key").stat().st_mtime
        overheads = []
        print(f"ray {version('ray')}, torch {version('torch')}, W = {options.workers}")
        print("trial  seconds  steps  overhead")
        for trial, start, end in zip(trials, [begun, *ends], ends, strict=False):
            steps = step_seconds(trial)
            overheads.append(end - start - steps)
            print(f"{trial.name}  {end - start:7.2f}  {steps:5.2f}  {overheads[-1]:8.2f}")
        print(
            f"after the first: median {statistics.median(overheads[1:]):.2f} s, "
            f"most {max(overheads[1:]):.2f} s"
        )


if __name__ == "__main__":
    main()
