"""Workers that come and go: 4 → 2 → 3 on several nodes, with the same draws, views and noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults.judge import account, keys_used_twice
from helpers import support
from helpers.stage import Stage, start_cluster
from helpers.support import MakeConfig, charged, folder, start
from ray.cluster_utils import Cluster
from torch import Tensor

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_ray")]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Four nodes for one worker each."""
    with start_cluster() as made:
        for _ in range(4):
            made.add_node(num_cpus=1)
        yield made


def elastic(make_config: MakeConfig, *, steps: int, checkpoint_every: int | None) -> Config:
    return make_config(
        name="elastic",
        privacy={"steps": steps, "accountant": "rdp"},
        optimizer={"ema_decay": 0.9, "arguments": {"momentum": 0.5}},
        train={"checkpoint_every": checkpoint_every},
        cluster={"num_workers": [2, 4], "resize_interval_s": 2.0},
    )


def four_two_three(
    cluster: Cluster,
    config: Config,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stops: tuple[int, int],
) -> Stage:
    """Trains with 4 workers, loses two nodes at the first stop, and gets one at the second."""
    nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    stage = Stage(cluster, config, folder, monkeypatch, stops=stops)
    stage.wait_for_stop(stops[0], workers=4)
    for node in nodes[:2]:
        cluster.remove_node(node, allow_graceful=False)
    stage.wait_for_stop(stops[1], workers=2)
    cluster.add_node(num_cpus=1)
    stage.finish()
    assert stage.workers == 3
    return stage


def vector(config: Config) -> Tensor:
    """All published parameters."""
    return torch.cat([t.flatten() for t in support.released(config).values()])


def test_each_step_saved_costs_nothing(
    cluster: Cluster, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps not yet charged keep their draws, views and noise: as with a fixed W, to rounding."""
    config = elastic(make_config, steps=12, checkpoint_every=None)  # the default: each step
    stage = four_two_three(cluster, config, tmp_path, monkeypatch, stops=(5, 8))
    assert (stage.result["status"], stage.result["steps"]) == ("finished", 12)
    assert charged(config) == [(step, 0) for step in range(12)]
    assert keys_used_twice([stage.log]) == []

    fixed = elastic(make_config, steps=12, checkpoint_every=None)
    cluster_of_one = fixed.cluster.model_copy(update={"num_workers": 0})
    fixed = fixed.model_copy(update={"name": "fixed", "cluster": cluster_of_one})
    start(fixed)
    difference = (vector(config) - vector(fixed)).norm() / vector(fixed).norm()
    assert float(difference) < 1e-5
    executions = [s.execution for s in RunDirectory.of(config).read_ledger().sessions]
    assert [e.workers for e in executions] == [4, 2, 3]


def test_repeated_steps_are_drawn_and_charged_again(
    cluster: Cluster, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other workers round sums otherwise: equal noise on both would cancel out."""
    config = elastic(make_config, steps=20, checkpoint_every=4)
    stage = four_two_three(cluster, config, tmp_path, monkeypatch, stops=(7, 10))
    # Saved at 4 and 8: two workers repeat 4, 5 and 6, three repeat 8 and 9. The budget ends the
    # run as many steps early.
    assert charged(config) == [
        *((step, 0) for step in range(7)),
        *((4, 1), (5, 1), (6, 1), (7, 0), (8, 0), (9, 0)),
        *((8, 1), (9, 1), (10, 0), (11, 0), (12, 0), (13, 0), (14, 0)),
    ]
    assert stage.result["status"] == "finished"
    assert (stage.result["steps"], stage.result["charges"]) == (15, 20)
    assert keys_used_twice([stage.log]) == []
    spent = account(folder(config), stage.log)
    assert spent.releases == spent.charges == 20
