"""Privacy that is broken, for audits to notice: what no switch of the product can do.

How often an audit notices: ``python -m faults.broken`` prints a table; some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from support import key_of
from torch import Tensor

from dp_ray.cluster.audit import run_audit
from dp_ray.config import Config
from dp_ray.config_file import parse_config
from dp_ray.data.sampling import PoissonSampler
from dp_ray.privacy import clipping
from dp_ray.privacy.noise import KeyedNoiseOptimizer

FAULTS = ("noise off", "a quarter of the noise", "clipping off", "examples counted twice")


@contextmanager
def broken(fault: str) -> Iterator[None]:
    """This process with one of :data:`FAULTS`; whole with any other name."""
    add_noise, draw = KeyedNoiseOptimizer.add_noise, PoissonSampler.draw

    def less_noise(self: KeyedNoiseOptimizer) -> None:
        self.noise_multiplier *= 0.0 if fault == "noise off" else 0.25
        add_noise(self)

    def leave_as_it_is(norms_pb: dict[str, Tensor], norms_b: Tensor, *_: Any) -> dict[str, Tensor]:
        return dict.fromkeys(norms_pb, torch.ones_like(norms_b))

    def draw_twice(self: PoissonSampler, *arguments: Any) -> NDArray[np.int64]:
        return np.repeat(draw(self, *arguments), 2)

    if fault in ("noise off", "a quarter of the noise"):
        with patch.object(KeyedNoiseOptimizer, "add_noise", less_noise):
            yield
    elif fault == "clipping off":
        with patch.object(clipping, "_factors", leave_as_it_is):
            yield
    elif fault == "examples counted twice":
        with patch.object(PoissonSampler, "draw", draw_twice):
            yield
    else:
        yield


def broken_worker(config: dict[str, Any], *, fault: str) -> None:
    """In place of ``train_func_per_worker``: the same, broken."""
    from dp_ray.cluster.worker import train_func_per_worker

    with broken(fault):
        train_func_per_worker(config)


def audited(folder: Path, *, seed: int | None, workers: int = 0, name: str = "audit") -> Config:
    """Twenty steps, each with a tenth of 4,000 examples, at σ = 1.

    Small enough that an audit whose canaries take all places needs a second or two.
    """
    return parse_config(
        {
            "data": {
                "name": "fake",
                "num_examples": 4000,
                "image_size": 8,
                "channels": 1,
                "expected_batch_size": 400,
                "cache": str(folder / "cache"),
            },
            "privacy": {
                "noise_multiplier": 1.0,
                "steps": 20,
                "delta": 1e-4,
                "accountant": "rdp",
            },
            "optimizer": {"lr": 0.1},
            "train": {"storage_path": str(folder / "runs"), "microbatch_size": 256},
            "cluster": {"num_workers": workers, "threads_per_worker": 1},
            "seed": seed,
            "name": name,
        }
    )


def main() -> None:
    """Prints how often each fault was noticed, and how often none was seen where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--faults", nargs="+", default=("none", *FAULTS), metavar="FAULT")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    print(f"{'fault':24s} {'alarms':>8s} {'ε ≥ (least … most)':>20s} {'seconds':>8s}")
    for fault in arguments.faults:
        alarms, bounds, started = 0, [], time.monotonic()
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder, broken(fault):
                found = run_audit(
                    audited(Path(folder), seed=seed),
                    canaries=4000,
                    replay=key_of(seed),
                    console=Console(quiet=True),
                )
            alarms += found["refuted"]
            bounds.append(found["epsilon_lower"])
        shown = f"{min(bounds):.2f} … {max(bounds):.2f}"
        seconds = (time.monotonic() - started) / len(seeds)
        print(f"{fault:24s} {alarms:3d} of {len(seeds)} {shown:>20s} {seconds:8.1f}", flush=True)
    print(f"claimed: ε = {found['epsilon_claimed']:.4f} at δ = {found['delta']:g}")


if __name__ == "__main__":
    main()
