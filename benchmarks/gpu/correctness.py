"""Stage a: whether a GPU computes what the CPU computes. No item stops another."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import gpu_only
import numpy as np
import torch
from contenders import NETWORKS, Case, in_float64, ours
from reference import drawn, fixed_key
from results import Results, arguments, in_short
from safetensors.torch import load_file
from torch import Tensor

from dp_ray.api.train import run_training
from dp_ray.config.data import AugmentConfig
from dp_ray.config.files import load_config
from dp_ray.config.run import Config
from dp_ray.data.views import ViewMaker
from dp_ray.gradients.engines.engine import Precision
from dp_ray.keys import KeyedStream, RunKey
from dp_ray.performance.device import prepare_device
from dp_ray.training.step import Assignment, ShardWorker

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"

FARTHEST = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 5e-2}
"""Of a clipped sum from float64, over its largest entry, for a network without kinks."""

PLAIN: tuple[str, ...] = ("vmap", "per_layer")

ULPS = 2
"""Between normal numbers of two machines."""

ALL_VIEWS = {
    "views": 4,
    "shift": 3,
    "padding": "reflect",
    "horizontal_flip": 0.5,
    "rotation": 15,
    "scale": 0.1,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
    "cutout": 8,
}
SHIFTED = {"views": 16, "shift": 4, "padding": "reflect", "horizontal_flip": 0.5}


class Checks:
    """Runs checks one by one; each returns (passed or None, figure, detail)."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self._results = Results(options.out, "correctness")
        self._until = options.until

    def run(self, item: str, check: Callable[[], tuple[bool | None, float, str]]) -> None:
        """Records pass, fail, info or error."""
        if time.monotonic() > self._until:
            self._results.add(item=item, outcome="no time")
            return
        started = time.monotonic()
        try:
            passed, figure, note = check()
            outcome = {True: "pass", False: "FAIL", None: "info"}[passed]
        except Exception as error:
            outcome, figure, note = "ERROR", float("nan"), in_short(error)
        took = round(time.monotonic() - started, 1)
        self._results.add(item=item, outcome=outcome, figure=figure, note=note, seconds=took)

    # What is drawn.

    def draws(self) -> dict[str, Callable[[], tuple[bool | None, float, str]]]:
        """Against the numbers of the machine that packed the bundle."""
        file = Path(__file__).parents[3] / "reference.npz"
        if not file.exists():
            return {"draws": lambda: (None, 0.0, "no reference.npz beside src/")}
        theirs, mine = np.load(file), drawn()

        def equal(name: str) -> tuple[bool | None, float, str]:
            same = np.array_equal(theirs[name], mine[name])
            return same, float(len(mine[name])), "numbers, bit for bit"

        def normals() -> tuple[bool | None, float, str]:
            a, b = theirs["normals"], mine["normals"]
            ulps = float((np.abs(a - b) / np.spacing(np.abs(a))).max())
            return ulps <= ULPS, ulps, f"ulp at most, of {len(a)}; {(a != b).mean():.2%} differ"

        return {
            "cipher words": lambda: equal("words"),
            "Poisson draw": lambda: equal("ids"),
            "normal numbers": normals,
        }

    def views(self, settings: dict[str, Any], farthest: float) -> tuple[bool | None, float, str]:
        """The same draw, made here and on the device."""
        config = AugmentConfig(**settings)
        facts = NETWORKS["WRN-16-4"][1]
        ids = np.arange(64)
        images = torch.randint(
            256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        made: list[Tensor] = []
        for device in (torch.device("cpu"), self.device):
            maker = ViewMaker(config, facts, device)
            stream = KeyedStream(bytes(32), incarnation=0, step=3)
            made.append(maker.make(images.to(device), maker.draw(stream, ids)).cpu())
        distance = (made[0] - made[1]).abs()
        far = float(distance.max())
        share = float((distance > 1e-4).float().mean())
        return far <= farthest, far, f"largest distance; {share:.1e} of pixels beyond 1e-4"

    # What is summed.

    def sums(self, network: str, name: str, precision: Precision) -> tuple[Any, float, str]:
        """A clipped sum against float64 on the CPU."""
        case = Case(network, *((16, 4) if network == "small CNN" else (4, 4)))
        expected = in_float64(case)
        found = ours(Case(*case.shape, self.device.type), name, precision)()
        assert found is not None
        gap = (found.cpu() - expected).abs().max() / expected.abs().max()
        length = (found.cpu() - expected).norm() / expected.norm()
        limit = FARTHEST[precision] if network == "small CNN" else None
        passed = None if limit is None else bool(gap <= limit)
        return passed, float(gap), f"of the largest entry (limit {limit}); {length:.1e} in norm"

    # What is trained.

    def config(self, name: str, *, on_device: bool, **fields: Any) -> Config:
        """A short run on digits, by the path without Ray."""
        values = {
            "privacy.epsilon": "null",
            "privacy.noise_multiplier": 2,
            "privacy.steps": 20,
            "cluster.num_workers": 0,
            "cluster.gpus_per_worker": int(on_device and self.device.type == "cuda"),
            "train.storage_path": self.options.work / "runs",
            "train.engine": "vmap",
            "train.microbatch_size": 64,
            "train.evaluate_every": 10,
            "data.cache": self.options.work / "cache",
            "data.expected_batch_size": 128,
            "augment.views": 2,
            **({"cluster.threads_per_worker": 1} if self.options.smoke else {}),
            **fields,
        }
        shutil.rmtree(self.options.work / "runs" / name, ignore_errors=True)
        return load_config(DIGITS, [f"{key}={value}" for key, value in values.items()], name=name)

    @staticmethod
    def train(config: Config, *, resume: bool = False) -> dict[str, Any]:
        """With one key for all runs, so that they can be compared."""
        with patch.object(RunKey, "from_entropy", fixed_key):
            return run_training(config, resume=resume, accept_charges=math.inf).dump()

    @staticmethod
    def folder(config: Config) -> Path:
        """Of a run."""
        return Path(config.train.storage_path) / config.name

    def charges(self, config: Config) -> list[tuple[int, int]]:
        """(step, incarnation) of every charge of a run, in order."""
        text = (self.folder(config) / "private" / "ledger" / "records.jsonl").read_text()
        bodies = [json.loads(json.loads(line)["body"]) for line in text.splitlines()]
        return [(b["step"], b["incarnation"]) for b in bodies if b["kind"] == "charge"]

    def released(self, config: Config) -> Tensor:
        """The published parameters as one vector."""
        tensors = load_file(self.folder(config) / "release" / "model.safetensors")
        return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])

    def steps(self) -> tuple[bool | None, float, str]:
        """The parameters after 20 steps here and there."""
        ends = []
        for name, on_device in (("host", False), ("device", True)):
            config = self.config(name, on_device=on_device)
            result = self.train(config)
            ends.append((self.released(config), result["test_accuracy"]))
        (host, there), (device, here) = ends
        far = float((host - device).norm() / host.norm())
        return far <= 1e-3, far, f"distance in norm; accuracies {there:.4f} and {here:.4f}"

    def repeat(self) -> tuple[bool | None, float, str]:
        """Whether the device repeats itself."""
        ends = []
        for name in ("first", "second"):
            config = self.config(name, on_device=True)
            self.train(config)
            ends.append(self.released(config))
        far = float((ends[0] - ends[1]).norm() / ends[0].norm())
        return None, far, "bit for bit" if far == 0 else "a replay would be charged again"

    def resume(self, *, to_device: bool) -> tuple[bool | None, float, str]:
        """A run that crashed after step 9, checkpointed at 8, continued on the other device."""
        name = f"resumed-on-{'device' if to_device else 'host'}"
        config = self.config(name, on_device=not to_device, **{"train.checkpoint_every": 8})
        with patch.object(ShardWorker, "clipped_sum", _lost_at(10)), suppress(_LostError):
            self.train(config)
        gpus = int(to_device and self.device.type == "cuda")
        moved = config.cluster.model_copy(update={"gpus_per_worker": gpus})
        result = self.train(config.model_copy(update={"cluster": moved}), resume=True)
        charges = self.charges(config)
        again = [charge for charge in charges if charge[1] > 0]
        passed = len(charges) <= 20 and len(set(charges)) == len(charges)
        if self.device.type == "cuda":
            passed &= (8, 1) in charges
        said = f"charges, {len(again)} of them steps drawn afresh; {result['status']}"
        return passed, float(len(charges)), said


class _LostError(Exception):
    """A process that is no more."""


def _lost_at(step: int) -> Callable[..., Any]:
    """What ends a run as a lost process does: without a checkpoint."""
    add_up = ShardWorker.clipped_sum

    def summed(worker: ShardWorker, params: Tensor, assignment: Assignment) -> Any:
        if assignment.step == step:
            raise _LostError
        return add_up(worker, params, assignment)

    return summed


def main() -> None:
    """Runs all checks, the most telling first."""
    options = arguments(str(__doc__)).parse_args()
    checks = Checks(options)
    prepare_device(checks.device)
    for item, check in checks.draws().items():
        checks.run(item, check)
    checks.run("views: whole shifts, mirror", lambda: checks.views(SHIFTED, 1e-6))
    checks.run("views: all transforms", lambda: checks.views(ALL_VIEWS, 1e-2))

    def sums(network: str, names: Sequence[str], *precisions: Precision) -> None:
        for name in names:
            for precision in precisions:
                item = f"sum: {network}, {name}, {precision}"
                checks.run(item, lambda n=name, p=precision: checks.sums(network, n, p))

    sums("small CNN", PLAIN, *get_args(Precision))
    checks.run("20 steps on each device", checks.steps)
    checks.run("resume on the device", lambda: checks.resume(to_device=True))
    checks.run("resume on the host", lambda: checks.resume(to_device=False))
    for name in PLAIN:
        checks.run(f"no hidden waits: {name}", lambda n=name: gpu_only.unhindered(checks, n))
    checks.run("two runs on the device", checks.repeat)
    checks.run("too little memory", lambda: gpu_only.too_little_memory(checks))
    checks.run("several GPUs", lambda: gpu_only.several(checks))
    sums("small CNN", ["per_layer_compiled"], "float32", "bfloat16")
    compiled = "per_layer_compiled"
    checks.run("no hidden waits: compiled", lambda: gpu_only.unhindered(checks, compiled))
    checks.run("CUDA graph: replays", lambda: gpu_only.replayed(checks, compiled))
    sums("small CNN", ["vmap_compiled"], *get_args(Precision))
    sums("small CNN", ["per_layer_compiled"], "tf32")
    sums("WRN-16-4", PLAIN, "float32", "bfloat16")


if __name__ == "__main__":
    main()
