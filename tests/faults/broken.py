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
from helpers.support import key_of
from numpy.typing import NDArray
from torch import Tensor, nn

from dp_ray.api.audit import run_audit
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.gradients import clipping
from dp_ray.gradients.engines import vmap as engines
from dp_ray.privacy.noise import KeyedNoiseOptimizer
from dp_ray.training.rehearsal import Rehearsal
from dp_ray.training.step import Assignment, ShardWorker

FAULTS = (
    "noise off",
    "a quarter of the noise",
    "clipping off",
    "engine does not clip",
    "examples counted twice",
)

LEAK = "network remembers"
"""Seen by no canary: one example changes the gradients of others. See :class:`Remembering`."""


@contextmanager
def broken(fault: str) -> Iterator[None]:
    """This process with one of :data:`FAULTS`; whole with any other name."""
    add_noise, draw = KeyedNoiseOptimizer.add_noise, ShardWorker.drawn

    def less_noise(self: KeyedNoiseOptimizer) -> None:
        self.noise_multiplier *= 0.0 if fault == "noise off" else 0.25
        add_noise(self)

    def leave_as_it_is(norms_pb: dict[str, Tensor], norms_b: Tensor, *_: Any) -> dict[str, Tensor]:
        return dict.fromkeys(norms_pb, torch.ones_like(norms_b))

    def sum_unclipped(
        gradients: dict[str, Tensor], mask: Tensor, _: Tensor, rule: clipping.Clipping
    ) -> tuple[dict[str, Tensor], Tensor]:
        return clipping.clip_and_sum(gradients, mask, torch.tensor(1e9).double(), rule)

    def draw_twice(self: ShardWorker, assignment: Assignment) -> NDArray[np.int64]:
        return np.repeat(draw(self, assignment), 2)

    if fault in ("noise off", "a quarter of the noise"):
        with patch.object(KeyedNoiseOptimizer, "add_noise", less_noise):
            yield
    elif fault == "clipping off":
        with patch.object(clipping, "_factors", leave_as_it_is):
            yield
    elif fault == "engine does not clip":
        with patch.object(engines, "clip_and_sum", sum_unclipped):
            yield
    elif fault == LEAK:
        with patch.object(Rehearsal, "try_out"), patch.object(Rehearsal, "run"):
            yield
    elif fault == "examples counted twice":
        with patch.object(ShardWorker, "drawn", draw_twice):
            yield
    else:
        yield


def broken_worker(config: dict[str, Any], *, fault: str) -> None:
    """In place of ``train_func_per_worker``: the same, broken."""
    from dp_ray.on_ray.worker import train_func_per_worker

    with broken(fault):
        train_func_per_worker(config)


class Remembering(nn.Module):
    """A network that adds to what it sees what it saw in the call before: examples meet.

    The rehearsal refuses it, unless it is broken.
    """

    def __init__(self, channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels * image_size**2, 32)
        self.output = nn.Linear(32, num_classes)
        self.before: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, C, H, W]."""
        seen = images.flatten(1)
        if self.training:
            mixed = seen if self.before is None else seen + self.before
            self.before = seen.detach().mean(0)
            seen = mixed
        return self.output(torch.tanh(self.hidden(seen)))


def two_layers(channels: int, image_size: int, num_classes: int) -> nn.Module:
    """For ``model.name``: 6,010 parameters for grey images of 8 pixels a side, and quick."""
    hidden = nn.Linear(channels * image_size**2, 80)
    return nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), nn.Linear(80, num_classes))


def remembering(channels: int, image_size: int, num_classes: int) -> nn.Module:
    """For ``model.name``."""
    return Remembering(channels, num_classes, image_size)


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
            "model": {"name": "faults.broken:two_layers"},
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
                    audited(Path(folder), seed=seed), canaries=4000, replay=key_of(seed)
                ).dump()
            alarms += found["refuted"]
            bounds.append(found["epsilon_lower"])
        shown = f"{min(bounds):.2f} … {max(bounds):.2f}"
        seconds = (time.monotonic() - started) / len(seeds)
        print(f"{fault:24s} {alarms:3d} of {len(seeds)} {shown:>20s} {seconds:8.1f}", flush=True)
    print(f"claimed: ε = {found['epsilon_claimed']:.4f} at δ = {found['delta']:g}")


if __name__ == "__main__":
    main()
