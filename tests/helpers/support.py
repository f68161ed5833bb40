"""Names that several test modules share."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from dp_ray.api.train import run_training
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.keys import RunKey

MakeConfig = Callable[..., Config]
"""The type of the ``make_config`` fixture."""


def config_maker(path: Path) -> MakeConfig:
    """What the ``make_config`` fixture is, for a folder of one's own."""

    def make(**sections: Any) -> Config:
        values: dict[str, Any] = {
            "data": {"name": "digits", "expected_batch_size": 64, "cache": str(path / "cache")},
            "augment": {"views": 2, "rotation": 8.0, "shift": 0.3, "subpixel": True},
            "privacy": {
                "noise_multiplier": 1.0,
                "steps": 4,
                "delta": 1e-4,
                "accountant": "rdp",
            },
            "optimizer": {"lr": 0.5},
            "train": {"storage_path": str(path / "runs")},
            "cluster": {"num_workers": 0, "threads_per_worker": 1},
            "seed": 1,
        }
        for name, section in sections.items():
            if isinstance(section, dict) and isinstance(values.get(name), dict):
                values[name] = {**values[name], **section}
            else:
                values[name] = section
        return parse_config(values)

    return make


def key_of(number: int) -> RunKey:
    """A key that can be had again; the product draws its keys from the operating system alone."""
    return RunKey(hashlib.sha256(f"dp-ray run key from seed {number}".encode()).digest())


def replay_of(config: Config) -> RunKey | None:
    """The key that runs of tests with this seed repeat; None without one: a key of its own."""
    return None if config.seed is None else key_of(config.seed)


def start(
    config: Config,
    *,
    resume: bool = False,
    break_lock: bool = False,
    accept_charges: int | None = None,
) -> dict[str, Any]:
    """Train as ``dp-ray train`` does, and return what result.json holds.

    A new run has the key of its seed, to be comparable.
    """
    result = run_training(
        config,
        resume=resume,
        break_lock=break_lock,
        accept_charges=accept_charges,
        replay=None if resume else replay_of(config),
    )
    return result.dump()


def folder(config: Config) -> Path:
    """A run's folder on the disk."""
    path = RunDirectory.of(config).root.path
    assert path is not None
    return path


def what_is_raised(call: Callable[[], object]) -> str:
    """Class and message of what a call raises, whatever that is; empty if it raises nothing."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def released(config: Config) -> dict[str, Tensor]:
    """The published parameters by name."""
    return dict(load_file(folder(config) / "release" / "model.safetensors"))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two models are equal bit for bit."""
    return all(first[name].equal(second[name]) for name in first.keys() | second.keys())


def charged(config: Config) -> list[tuple[int, int]]:
    """(step, incarnation) of every charge in the run's ledger, in order."""
    text = (folder(config) / "private/ledger/records.jsonl").read_text()
    bodies = [json.loads(json.loads(line)["body"]) for line in text.splitlines()]
    return [(b["step"], b["incarnation"]) for b in bodies if b["kind"] == "charge"]


def heed_ctrl_c() -> None:
    """In a process that is started: take SIGINT, which jobs of a shell's background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
