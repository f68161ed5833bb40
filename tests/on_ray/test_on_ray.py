"""Training by Ray Train workers: the same mathematics, and what happens when a worker fails."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import support
from helpers.cluster_head import listening
from helpers.shared_ray import SharedRay
from helpers.support import MakeConfig, config_maker, start
from torch import Tensor

from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.run_directory import RELEASE, STOP, RunDirectory
from dp_ray.config.run import Config
from dp_ray.errors import ConfigError, RunError
from dp_ray.privacy.plan import PrivacyPlan

pytestmark = pytest.mark.usefixtures("shared_ray")


def released(config: Config) -> Tensor:
    """All published parameters as one vector."""
    return torch.cat([t.flatten() for t in support.released(config).values()])


SETTINGS: dict[str, Any] = {
    "privacy": {
        "steps": 40,
        "adaptive_clipping": {"learning_rate": 0.5},
        "noise_schedule": {"final": 0.5},
    },
    "optimizer": {"ema_decay": 0.9, "arguments": {"momentum": 0.5}},
    "train": {"checkpoint_every": 5, "evaluate_every": 100},
}
"""With all that rank 0 decides at each step, and others must hear of."""


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, session_ray: SharedRay) -> Tensor:
    """What two workers release if nothing happens to them."""
    session_ray.start()
    config = configuration(tmp_path_factory.mktemp("two"), name="two", workers=2)
    result = start(config)
    assert (result["status"], result["charges"]) == ("finished", 40)
    return released(config)


def configuration(path: Path, *, name: str, workers: int, **cluster: Any) -> Config:
    sections: dict[str, Any] = {"name": name, "cluster": {"num_workers": workers, **cluster}}
    return config_maker(path)(**SETTINGS, **sections)


@pytest.mark.parametrize(
    "workers", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 4))]
)
def test_the_number_of_workers_is_no_part_of_the_mathematics(
    tmp_path: Path, by_two: Tensor, workers: int
) -> None:
    """40 noised steps end within rounding of those without Ray (W = 0).

    With an adaptive clipping norm, which rank 0 broadcasts at each step.
    """
    alone = configuration(tmp_path, name="alone", workers=0)
    start(alone)
    found = by_two
    if workers != 2:
        config = configuration(tmp_path, name="others", workers=workers)
        assert start(config)["charges"] == 40
        found = released(config)
    expected = released(alone)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_killed_worker_costs_no_work_and_no_budget(tmp_path: Path, by_two: Tensor) -> None:
    """kill -9 of a worker mid-run: Ray restarts the group, the end is bit for bit the same."""
    config = configuration(tmp_path, name="hit", workers=2, max_failures=2)
    run = RunDirectory.of(config)
    killed: list[int] = []
    killer = threading.Thread(target=lambda: killed.append(kill_a_worker(run)), daemon=True)
    killer.start()
    result = start(config)
    killer.join()
    assert killed
    assert len(run.read_ledger().sessions) == 2
    assert (result["status"], result["steps"], result["charges"]) == ("finished", 40, 40)
    assert torch.equal(released(config), by_two)


def kill_a_worker(run: RunDirectory) -> int:
    """Kills one of the run's worker processes once a checkpoint is there."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if run.checkpoints.names():
            for process in psutil.process_iter(["cmdline"]):
                title = " ".join(process.info["cmdline"] or [])
                ours = process.is_running() and os.getpid() in [p.pid for p in process.parents()]
                if "RayTrainWorker" in title and ours:
                    process.send_signal(signal.SIGKILL)
                    return process.pid
        time.sleep(0.02)
    raise AssertionError("no worker was found to kill")


@pytest.mark.slow
def test_a_stop_request_leaves_a_resumable_run(make_config: MakeConfig) -> None:
    """And until then nothing listens where another machine could reach it."""
    config = make_config(privacy={"steps": 2000}, cluster={"num_workers": 2})
    run = RunDirectory.of(config)
    listens: set[str] = set()

    def request() -> None:
        while not run.private.exists(Progress.FILE):  # written after the first step
            time.sleep(0.05)
        here = psutil.Process()
        listens.update(listening([here, *here.children(recursive=True)]))
        run.private.write(STOP, b"")

    threading.Thread(target=request, daemon=True).start()
    result = start(config)
    assert result["status"] == "stopped"
    assert 0 < result["steps"] < 2000
    assert result["charges"] == result["steps"]
    assert run.checkpoints.names()
    assert not run.root.exists(RELEASE)
    assert listens == {"127.0.0.1"}


OWN_CODE = """
import os
import numpy as np
import torch
from torch import nn

def load(config):
    r = np.random.default_rng(0)
    images = r.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    return (images, np.arange(40) % 2), (images[:8], np.arange(8) % 2)

def load_in_any_order(config):
    with open(os.path.join(os.path.dirname(__file__), "loads"), "a") as file:
        file.write("x")
    (images, labels), test = load(config)
    order = np.random.default_rng(os.getpid()).permutation(40)
    return (images[order], labels[order]), test

def build(num_classes, channels, image_size):
    frozen = nn.Linear(64, 16)
    weight = np.random.default_rng(0).standard_normal((16, 64))
    frozen.weight = nn.Parameter(torch.from_numpy(weight).float())
    frozen.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), frozen, nn.Tanh(), nn.Linear(16, num_classes))
"""
OWN_DATA = {
    "num_examples": 40,
    "num_classes": 2,
    "image_size": 8,
    "channels": 1,
    "expected_batch_size": 8,
}


@pytest.fixture
def own_code(shared_ray: SharedRay) -> None:
    """A user's module in the folder that the command is run from."""
    (shared_ray.folder / "my_images.py").write_text(OWN_CODE)


@pytest.mark.slow
@pytest.mark.usefixtures("own_code")
def test_own_loader_and_model_are_found_by_the_workers(make_config: MakeConfig) -> None:
    """With a frozen layer, which is drawn by numpy."""
    config = make_config(
        data={"name": "my_images:load", **OWN_DATA},
        model={"name": "my_images:build"},
        cluster={"num_workers": 2},
        privacy={"delta": 1e-3},
    )
    result = start(config)
    assert result["status"] == "finished"


@pytest.mark.slow
@pytest.mark.usefixtures("own_code")
def test_workers_that_read_other_data_end_the_run(make_config: MakeConfig) -> None:
    """Their shards would overlap: an example could count twice."""
    config = make_config(
        name="shuffled",
        data={"name": "my_images:load_in_any_order", **OWN_DATA},
        model={"name": "my_images:build"},
        cluster={"num_workers": 2, "max_failures": 5},
        privacy={"delta": 1e-3},
    )
    Path("loads").unlink(missing_ok=True)
    with pytest.raises(RunError, match="read other training data"):
        start(config)
    assert len(Path("loads").read_text()) == 3  # the driver and both workers, once each


@pytest.mark.slow
def test_a_mistake_that_only_a_worker_sees_has_no_traceback(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's own message reaches the user as it is."""
    config = make_config(cluster={"num_workers": 2})
    run = RunDirectory.of(config)
    original = RunDirectory.create

    def create_and_lose_the_key(
        self: RunDirectory, config: Config, plan: PrivacyPlan, **options: Any
    ) -> None:
        original(self, config, plan, **options)
        self.private.delete("run_key")

    monkeypatch.setattr(RunDirectory, "create", create_and_lose_the_key)
    with pytest.raises(RunError, match=r"run_key.*backup"):
        start(config)
    assert not run.root.exists(RELEASE)


def test_a_mistake_is_told_before_ray_is_asked(make_config: MakeConfig) -> None:
    """Something listens at the address, and it is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        config = make_config(cluster={"num_workers": 2, "address": address}, privacy={"delta": 0.9})
        with pytest.raises(ConfigError, match="delta"):
            start(config)
