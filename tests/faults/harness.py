"""Runs that are hurt, and how they end. All of it: ``python -m faults.harness`` (make faults).

Each scenario trains to its end, however often it is killed on the way, and is compared with the
same run left in peace. One table says what was tried.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dp_ray.artifacts.result import Result
from dp_ray.storage import open_folder
from faults.inject import POINTS, TARGETS, Fault, kill
from faults.judge import Account, account, keys_used_twice

STEPS = 40
_TESTS = Path(__file__).parent.parent
_POLL_S = 0.01
_PATIENCE_S = 240


@dataclass(frozen=True)
class Ending:
    """How a hurt run ended.

    Attributes:
        name: of the fault, for the table.
        strikes: how often it happened.
        identical: whether the model equals the undisturbed one bit for bit.
        steps_lost: planned steps that were not taken.
        account: spent in truth, and by the ledger.
        log: of the noise that was drawn.
    """

    name: str
    strikes: int
    identical: bool
    steps_lost: int
    account: Account
    log: Path

    @property
    def recovered(self) -> bool:
        """Whether nothing was lost, and nothing forgotten."""
        enough = self.account.epsilon_charged >= self.account.epsilon_true
        return self.identical and self.steps_lost == 0 and enough


def write_config(
    folder: Path,
    *,
    seed: int,
    workers: int,
    privacy: dict[str, Any] | None = None,
    **train: int | str,
) -> Path:
    """A small run with momentum, a moving average and noise; it lives in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "data": {"name": "digits", "expected_batch_size": 64, "cache": str(folder.parent / "data")},
        "augment": {"views": 2, "rotation": 8.0, "shift": 0.3, "subpixel": True},
        "privacy": {
            "noise_multiplier": 1.0,
            "steps": STEPS,
            "delta": 1e-4,
            "accountant": "rdp",
            **(privacy or {}),
        },
        "optimizer": {"lr": 0.5, "ema_decay": 0.9, "arguments": {"momentum": 0.5}},
        "train": {"storage_path": str(folder), "checkpoint_every": 7, **train},
        "cluster": {"num_workers": workers, "threads_per_worker": 1, "max_failures": 20},
        "seed": seed,
        "name": "run",
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Run:
    """One run in ``folder``, from its start to its end.

    Args:
        folder: its own.
        seed: of the run.
        workers: W; 0 without Ray.
        fault: what happens at a point of the program, if anything; its folder is replaced.
        driver: the module that is run.
        privacy: fields of that section of the configuration.
        train: further fields of the configuration's section of that name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        workers: int,
        fault: Fault | None = None,
        driver: str = "faults.driver",
        privacy: dict[str, Any] | None = None,
        **train: int,
    ) -> None:
        self.folder = folder
        self._driver = driver
        self.config = write_config(folder, seed=seed, workers=workers, privacy=privacy, **train)
        self.fault = replace(fault or Fault(""), folder=str(folder))
        self.log = folder / "noise"
        self.path = folder / "run"
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> subprocess.Popen[str]:
        """Starts the driver; goes on where the run was, if it was."""
        command = [sys.executable, "-m", self._driver, str(self.config), self.fault.to_json()]
        if (self.path / "private/ledger/records.jsonl").exists():
            command.append("--resume")
        with (self.folder / "errors").open("a") as errors:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(_TESTS), "OMP_NUM_THREADS": "1"},
                text=True,
            )
        return self._process

    def finish(self) -> None:
        """Starts drivers until one comes to the end: only killed ones may fail.

        Raises:
            AssertionError: a driver failed by itself; with what it said.
        """
        for _ in range(10):
            process = self._process or self.begin()
            code = process.wait(timeout=_PATIENCE_S)
            self._process = None
            if code == 0:
                return
            assert code == -9, (self.folder / "errors").read_text()
        raise AssertionError("ten drivers were killed")

    def wait_for_releases(self, count: int) -> None:
        """Until so many noised sums were seen, or the run is over."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            seen = self.log.read_bytes().count(b"\n") if self.log.exists() else 0
            if seen >= count or (self._process and self._process.poll() is not None):
                return
            time.sleep(_POLL_S)
        raise AssertionError(f"no {count} releases: {(self.folder / 'errors').read_text()}")

    def model(self) -> bytes:
        """The published parameters."""
        return (self.path / "release/model.safetensors").read_bytes()

    def ending(self, name: str, strikes: int, undisturbed: bytes) -> Ending:
        """Compared with the same run that was left in peace."""
        result = Result.read(open_folder(str(self.path)))
        return Ending(
            name,
            strikes,
            self.model() == undisturbed,
            STEPS - result.steps,
            account(self.path, self.log),
            self.log,
        )


def undisturbed(folder: Path, *, seed: int, workers: int, **train: int) -> bytes:
    """The model of a run that nothing happens to."""
    run = Run(folder, seed=seed, workers=workers, **train)
    run.finish()
    return run.model()


def at_a_point(
    folder: Path, point: str, target: str, *, seed: int, workers: int, reference: bytes, step: int
) -> Ending:
    """Kills a process as the coordinator reaches a point of a step."""
    run = Run(folder, seed=seed, workers=workers, fault=Fault("", point, (step,), target))
    run.finish()
    strikes = len(list(folder.glob("struck *")))
    return run.ending(f"{point}: {target}", strikes, reference)


def at_random(
    folder: Path, *, seed: int, workers: int, reference: bytes, kills: int = 3
) -> list[Ending]:
    """Kills processes of one run at random moments, one after the other."""
    random_ = random.Random(seed)
    run = Run(folder, seed=seed, workers=workers)
    targets = [random_.choice(TARGETS if workers else ("driver",)) for _ in range(kills)]
    struck = []
    for number, target in enumerate(targets):
        if run._process is None or run._process.poll() is not None:
            run.begin()
        run.wait_for_releases(
            random_.randrange(number * STEPS // kills + 2, (number + 1) * STEPS // kills)
        )
        time.sleep(random_.random() * 0.1)
        if kill(folder, target):
            struck.append(target)
            if target in ("driver", "node") and run._process is not None:
                run._process.wait()
                run._process = None
            else:
                time.sleep(1.0)  # until Ray has noticed
    run.finish()
    return [run.ending(f"random moment: {t}", 1, reference) for t in struck]


def table(endings: Iterable[Ending]) -> str:
    """Fault, times tried, recovered, ε true, ε charged: one line for each kind of fault."""
    by_name: dict[str, list[Ending]] = defaultdict(list)
    for ending in endings:
        by_name[ending.name].append(ending)
    lines = [f"{'fault':44s} {'tried':>5s} {'recovered':>9s} {'ε true':>8s} {'ε charged':>9s}"]
    for name, found in by_name.items():
        worst = max(found, key=lambda e: e.account.epsilon_charged - e.account.epsilon_true)
        lines.append(
            f"{name:44s} {sum(e.strikes for e in found):5d} "
            f"{sum(e.strikes for e in found if e.recovered):9d} "
            f"{worst.account.epsilon_true:8.4f} {worst.account.epsilon_charged:9.4f}"
        )
    return "\n".join(lines)


def whole(folder: Path, *, seeds: int, jobs: int) -> list[Ending]:
    """Every target at every point, without Ray and with it, and random moments of seeded runs."""
    with ThreadPoolExecutor(jobs) as pool:
        # Two runs of one seed share their keys whatever their workers, and sums round otherwise:
        # the judge would see it.
        seeds_of = {0: seeds, 2: seeds + 1}
        peace = {
            workers: pool.submit(undisturbed, folder / f"w{workers}", seed=seed, workers=workers)
            for workers, seed in seeds_of.items()
        }
        reference = {workers: future.result() for workers, future in peace.items()}
        points = [(0, point, "driver") for point in POINTS]
        points += [(2, point, target) for point in POINTS for target in TARGETS]
        tried = [
            pool.submit(
                at_a_point,
                folder / f"p{number}",
                point,
                target,
                seed=seeds_of[workers],
                workers=workers,
                reference=reference[workers],
                step=3 + 5 * number % (STEPS - 8),
            )
            for number, (workers, point, target) in enumerate(points)
        ]
        wild = [pool.submit(_calm_and_wild, folder, seed) for seed in range(seeds)]
        endings: list[Ending] = []
        for future in tried:
            endings.append(future.result())
            assert endings[-1].strikes == 1, f"{endings[-1].name} never happened"
            print(f"{len(endings)}: {endings[-1].name}", flush=True)
        for seed, several in enumerate(wild):
            endings += several.result()
            print(f"random moments of seed {seed}", flush=True)
    return endings


def _calm_and_wild(folder: Path, seed: int) -> list[Ending]:
    reference = undisturbed(folder / f"calm{seed}", seed=seed, workers=2)
    return at_random(folder / f"wild{seed}", seed=seed, workers=2, reference=reference)


def main() -> None:
    """Prints the table, and fails if any run did not recover."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="seeded runs, three kills in each")
    parser.add_argument(
        "--folder", type=Path, help="where to keep the runs; default a temporary one"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        endings = whole(
            arguments.folder or Path(temporary), seeds=arguments.seeds, jobs=arguments.jobs
        )
        print(table(endings))
        twice = keys_used_twice({e.log for e in endings})
    recovered = sum(e.recovered for e in endings)
    print(
        f"{recovered} of {len(endings)} recovered bit for bit with no step lost; "
        f"{len(twice)} keys met two sums; {time.monotonic() - started:.0f} s"
    )
    sys.exit(recovered != len(endings) or bool(twice))


if __name__ == "__main__":
    main()
