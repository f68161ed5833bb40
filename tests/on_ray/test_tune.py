"""Searches by Ray Tune: trials with and without workers of their own, failures, and the end."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from helpers.shared_ray import SharedRay
from helpers.support import MakeConfig, heed_ctrl_c, key_of
from safetensors.torch import load_file

from dp_ray.api.tune import run_sweep
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.search import SweepConfig, parse_sweep
from dp_ray.config.yaml_text import write_yaml
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.search.directory import SweepDirectory

SPACE = {
    "augment.views": {"choice": [1, 2]},
    "privacy.steps": {"choice": [10, 20]},
    "privacy.max_grad_norm": {"log_uniform": [0.5, 2]},
}
OWN_CODE = """
import os
from torch import nn

def build(num_classes, channels, image_size, trouble="none"):
    if trouble == "always" and os.getpid() != DRIVER:
        raise RuntimeError("the model cannot be built here")
    if trouble == "once" and os.getpid() != DRIVER:
        try:
            open(FLAG, "x").close()
        except FileExistsError:
            pass
        else:
            raise RuntimeError("the model cannot be built yet")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


pytestmark = pytest.mark.usefixtures("shared_ray")


def sweep_of(make_config: MakeConfig, name: str, **tune: Any) -> SweepConfig:
    """A small search; sections of the training configuration by ``training``."""
    values = make_config(**tune.pop("training", {})).dump()
    values["name"] = name
    values["data"]["evaluation"] = "public"
    values["privacy"].update(epsilon=3.0, noise_multiplier=None, steps=None, accountant="rdp")
    tune = {"space": SPACE, "num_samples": 3, "privacy_mode": "compose", **tune}
    return parse_sweep({**values, "tune": tune})


def trials_of(sweep: SweepConfig) -> dict[str, RunDirectory]:
    """The runs of a search's trials, by name."""
    folder = SweepDirectory.of(sweep).trials
    return {name: RunDirectory(folder / name) for name in folder.names()}


def search(sweep: SweepConfig, *, resume: bool = False) -> dict[str, Any]:
    replay = None if resume else key_of(1)
    return run_sweep(sweep, resume=resume, replay=replay).dump()


def parameters(run: RunDirectory) -> torch.Tensor:
    """What a trial released, as one vector."""
    path = run.root.path
    assert path is not None
    tensors = load_file(path / "release/model.safetensors")
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def test_a_search_trains_each_trial_at_the_budget(make_config: MakeConfig) -> None:
    sweep = sweep_of(make_config, "search", num_samples=2)
    told = search(sweep)
    assert [trial["status"] for trial in told["trials"]] == ["finished", "finished"]
    for trial in told["trials"]:
        assert 2.99 <= trial["epsilon"] <= 3.0
        assert trial["charges"] == trial["steps"] == trial["steps_planned"]

    # What Tune keeps beside the search, of all trials, is for nobody else.
    private = SweepDirectory.of(sweep).private.path
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    kept = list((session / "artifacts").rglob("experiment_state*"))
    kept = kept[:1] + list((private or Path()).rglob("experiment_state*"))
    assert kept
    for path in kept:
        assert any(stat.S_IMODE(p.stat().st_mode) & 0o077 == 0 for p in (path, *path.parents[:3]))


@pytest.mark.slow
def test_trials_with_and_without_workers_of_their_own(make_config: MakeConfig) -> None:
    """The number of workers is no part of the mathematics here either."""
    alone = sweep_of(make_config, "alone", num_samples=2)
    told = search(alone)
    shared = sweep_of(
        make_config, "shared", num_samples=2, training={"cluster": {"num_workers": 2}}
    )
    assert search(shared)["epsilon_of_search"] == told["epsilon_of_search"]
    for one, two in zip(trials_of(alone).values(), trials_of(shared).values(), strict=True):
        assert two.read_ledger().sessions[0].execution.workers == 2
        difference = (parameters(one) - parameters(two)).norm() / parameters(one).norm()
        assert float(difference) < 1e-4


@pytest.mark.slow
def test_an_adaptive_search_is_charged_whole(make_config: MakeConfig) -> None:
    sweep = sweep_of(
        make_config,
        "adaptive",
        searcher="optuna",
        scheduler="asha",
        num_samples=6,
        grace_evaluations=2,
        reduction_factor=2,
    )
    told = search(sweep)
    trials = told["trials"]
    assert len(trials) == 6
    assert {trial["status"] for trial in trials} == {"finished", "stopped early"}
    for trial in trials:
        if trial["status"] == "stopped early":
            assert 0 < trial["charges"] < trial["steps_planned"]
    whole = search(sweep_of(make_config, "whole", num_samples=6, searcher="optuna"))
    assert told["epsilon_of_search"] == whole["epsilon_of_search"]
    assert len({json.dumps(trial["parameters"]) for trial in whole["trials"]}) > 2


@pytest.mark.slow
def test_a_failed_trial_is_tried_again_and_reported(
    make_config: MakeConfig, shared_ray: SharedRay
) -> None:
    """This process only checks the model; trials build it in processes of their own."""
    flag = shared_ray.folder / "flag"
    constants = f"DRIVER = {os.getpid()}\nFLAG = {str(flag)!r}\n"
    (shared_ray.folder / "my_model.py").write_text(constants + OWN_CODE)
    space = {
        "model.arguments.trouble": {"grid": ["none", "once", "always"]},
        "privacy.steps": {"choice": [10]},
    }
    sweep = sweep_of(
        make_config,
        "trouble",
        space=space,
        searcher="grid",
        num_samples=1,
        max_failures=1,
        training={"model": {"name": "my_model:build"}},
    )
    told = search(sweep)
    found = {t["parameters"]["model.arguments.trouble"]: t for t in told["trials"]}
    assert flag.exists()
    assert [found[name]["status"] for name in ("none", "once", "always")] == [
        "finished",
        "finished",
        "failed",
    ]
    assert [found[name]["attempts"] for name in ("none", "once", "always")] == [1, 2, 2]
    assert "cannot be built here" in found["always"]["error"]
    # It was begun, and nothing was noised: its ledger says so, and that is what is charged.
    assert [found[name]["charges"] for name in ("none", "once", "always")] == [10, 10, 0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_was_ended_goes_on(
    make_config: MakeConfig, tmp_path: Path, number: signal.Signals
) -> None:
    """No finished trial is lost or run twice, and each is charged once."""
    sweep = sweep_of(
        make_config,
        "ended",
        num_samples=5,
        space={**SPACE, "privacy.steps": {"choice": [150]}},
        max_concurrent_trials=1,
    )
    file = tmp_path / "ended.yaml"
    file.write_text(write_yaml(sweep.dump()))
    command = [sys.executable, "-m", "dp_ray", "tune", str(file), "--json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509
    ) as process:
        deadline = time.monotonic() + 600
        while len(trials_of(sweep)) < 3:  # two are there, the third has begun
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    finished = {name for name, run in trials_of(sweep).items() if run.finished()}
    assert {"0000", "0001"} <= finished
    before = {name: contents(trials_of(sweep)[name]) for name in finished}

    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert [trial["status"] for trial in told["trials"]] == ["finished"] * 5
    assert {name: contents(trials_of(sweep)[name]) for name in finished} == before
    for run in trials_of(sweep).values():
        ledger = run.read_ledger()
        assert ledger.charges == ledger.steps == 150
    starts = {trial["name"]: trial["attempts"] for trial in told["trials"]}
    assert all(starts[name] == 1 for name in finished)
    # Charged as five whole runs, however often one was begun.
    sigma, rate = told["trials"][0]["noise_multiplier"], 64 / 1437
    expected = epsilon_of("rdp", ((sigma, rate, 5 * 150),), told["delta"])
    assert told["epsilon_of_search"] == pytest.approx(expected)


def contents(run: RunDirectory) -> dict[str, bytes]:
    """All that a trial left but for Ray's notes."""
    path = run.root.path
    assert path is not None
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
