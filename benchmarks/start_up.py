"""Seconds from ``dp-ray train`` to the first step, with Ray and in one process.

    python benchmarks/start_up.py [--repeat 3] [--workers 2 0] [--set A.B=VALUE]

Runs the command on configs/digits.yaml, watches the run's folder until the first step is released,
and stops the run by Ctrl-C. Once before that, unmeasured, to bring the files into memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dp_ray.artifacts.course import METRICS
from dp_ray.artifacts.progress import Progress

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


def measure(workers: int, overrides: list[str]) -> tuple[float, float]:
    """Seconds from the process's start until the first step began, and until it was released."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"cluster.num_workers={workers}",
            f"train.storage_path={folder}",
            *overrides,
        ]
        command = [sys.executable, "-m", "dp_ray", "train", str(CONFIG), "--name", "start"]
        command += [word for setting in settings for word in ("--set", setting)]
        private = Path(folder, "start", "private")
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            while not (private / Progress.FILE).exists():  # written with the first step
                if process.poll() is not None:
                    raise SystemExit(process.communicate()[1])
                time.sleep(0.01)
            released = time.monotonic() - started
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGINT)
                process.communicate()
        with (private / METRICS).open(encoding="utf-8") as lines:
            first = json.loads(next(lines))
    return released - first["seconds"], released


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 0])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    print(f"{'workers':16s} {'step 0 begins':>14s} {'released':>9s}   median of {arguments.repeat}")
    for workers in arguments.workers:
        runs = [measure(workers, arguments.overrides) for _ in range(arguments.repeat + 1)][1:]
        begins, released = (statistics.median(times) for times in zip(*runs, strict=True))
        spread = ", ".join(f"{end:.1f}" for _, end in sorted(runs, key=lambda run: run[1]))
        name = f"{workers} through Ray" if workers else "one process"
        print(f"{name:16s} {begins:12.1f} s {released:7.1f} s   ({spread})", flush=True)


if __name__ == "__main__":
    main()
