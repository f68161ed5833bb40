"""Accuracy and time of float32 and bfloat16 runs of one configuration.

    python benchmarks/precision_accuracy.py configs/mnist.yaml --seeds 3 --set data.root=…

Each seed is run with both, in turn; the same seed gives the same initial
parameters, and each run has its own draws and noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from dp_ray.api.train import run_training
from dp_ray.config.files import load_config


def main() -> None:
    """Prints a line for each run, then means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    options = parser.parse_args()
    accuracies: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for seed in range(options.seeds):
        for precision in ("float32", "bfloat16"):
            with tempfile.TemporaryDirectory() as folder:
                fields = [f"train.precision={precision}", f"train.storage_path={folder}"]
                config = load_config(options.config, [*options.set, *fields, f"seed={seed}"])
                result = run_training(config).dump()
                curve = Path(folder) / config.name / "private/metrics.jsonl"
                lines = [json.loads(line) for line in curve.read_text().splitlines()]
                step = statistics.median(x["seconds"] for x in lines if "seconds" in x)
            accuracies[precision].append(result["test_accuracy"])
            seconds[precision].append(step)
            print(
                f"seed {seed} {precision:9s} accuracy {result['test_accuracy']:.4f} "
                f"ε {result['epsilon']:.3f} {step:.3f} s a step",
                flush=True,
            )
    for precision, values in accuracies.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"{precision:9s} accuracy {statistics.mean(values):.4f} ± {spread:.4f}, "
            f"{statistics.median(seconds[precision]):.3f} s a step"
        )


if __name__ == "__main__":
    main()
