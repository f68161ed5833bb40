"""Three nodes: each with its own copy of the data, and shared storage for runs; nodes are lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.judge import keys_used_twice
from helpers.s3_server import serve_s3
from helpers.stage import Stage, start_cluster
from helpers.support import MakeConfig, charged, start
from PIL import Image
from ray._private.node import Node
from ray.cluster_utils import Cluster

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.errors import DpRayError
from dp_ray.reporting.ledger import ledger_facts

NUM_EXAMPLES = 60


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, such as is copied to each node."""
    for part, number in (("train", NUM_EXAMPLES), ("test", 10)):
        for i in range(number):
            image = tmp_path / "images" / part / f"class{i % 2}" / f"{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 2 * i + 100 * (i % 2)).save(image)
    return tmp_path / "images"


def add_node(cluster: Cluster, disk: Path, cpus: int = 1) -> Node:
    """Adds a node whose disk is mounted at a place of its own, ``$DISK``."""
    disk.mkdir(exist_ok=True)
    return cluster.add_node(
        num_cpus=cpus,
        node_name=disk.name,
        node_ip_address="127.0.0.1",
        env_vars={"DISK": str(disk)},
    )


def add_node_with_data(cluster: Cluster, disk: Path, images: Path) -> Node:
    shutil.copytree(images, disk / "images")
    return add_node(cluster, disk)


def configured(make_config: MakeConfig, cluster: Cluster, **workers: Any) -> Config:
    """Trains on the images of ``$DISK``."""
    return make_config(
        data={
            "name": "image_folder",
            "root": "$DISK/images",
            "cache": "$DISK/cache",
            "num_examples": NUM_EXAMPLES,
            "num_classes": 2,
            "image_size": 8,
            "channels": 1,
            "expected_batch_size": 30,
        },
        privacy={"steps": 12, "delta": 1e-3, "accountant": "rdp"},
        cluster={"address": cluster.address, "placement_strategy": "SPREAD", **workers},
    )


def workers_of_sessions(run: RunDirectory) -> list[int]:
    return [session.execution.workers for session in run.read_ledger().sessions]


def planned_epsilon(run: RunDirectory) -> float:
    return run.read_ledger().plan.epsilon


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_ray")]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with start_cluster() as made:
        yield made


def test_a_node_is_lost_and_another_comes(
    cluster: Cluster,
    make_config: MakeConfig,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each worker reads its node's copy; the coordinator's node goes, and nothing is paid twice."""
    disks = [tmp_path / f"disk{i}" for i in range(4)]
    for disk in disks[:3]:
        add_node_with_data(cluster, disk, images)
    config = configured(make_config, cluster, num_workers=[2, 3], resize_interval_s=2.0)
    stage = Stage(cluster, config, tmp_path, monkeypatch, stops=(4, 8))
    stage.wait_for_stop(4, workers=3)
    assert all((disk / "cache").exists() for disk in disks[:3])  # decoded on each node
    stage.lose_node_of(0)
    stage.wait_for_stop(8, workers=2)
    add_node_with_data(cluster, disks[3], images)
    result = stage.finish()

    run = RunDirectory.of(config)
    assert workers_of_sessions(run) == [3, 2, 3]
    assert (disks[3] / "cache").exists()
    assert (result["status"], result["steps"]) == ("finished", 12)
    assert charged(config) == [(step, 0) for step in range(12)]
    assert keys_used_twice([stage.log]) == []
    assert result["epsilon"] == pytest.approx(planned_epsilon(run))


def test_in_an_object_store_the_workers_go_on_where_there_is_room(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three workers on two nodes: a part of what was paid for at once is lost, and counted."""
    with serve_s3(tmp_path / "s3.log") as bucket, start_cluster() as cluster:
        for i in range(3):
            add_node(cluster, tmp_path / f"disk{i}", cpus=2)
        config = make_config(
            privacy={"steps": 16, "accountant": "rdp"},
            train={"storage_path": f"s3://{bucket}/runs", "charge_every": 4, "checkpoint_every": 5},
            cluster={
                "address": cluster.address,
                "num_workers": 3,
                "placement_strategy": "SPREAD",
                "max_failures": 1,
            },
        )
        stage = Stage(cluster, config, tmp_path, monkeypatch, stops=(7,))
        stage.wait_for_stop(7, workers=3)
        stage.lose_node_of(0)
        result = stage.finish()

        run = RunDirectory.of(config)
        assert workers_of_sessions(run) == [3, 3]
        # Saved at 5, where 4 to 7 were paid for; of 5 and 6 no digest was durable.
        facts = ledger_facts(str(run.root))
        assert (facts["verified"], facts["charges"]) == (True, 16)
        assert (result["status"], result["charges"], result["steps"]) == ("finished", 16, 13)
        assert keys_used_twice([stage.log]) == []
        assert result["epsilon"] == pytest.approx(planned_epsilon(run))


def test_nodes_without_the_data_are_named(
    cluster: Cluster, make_config: MakeConfig, images: Path, tmp_path: Path
) -> None:
    """All of them, in one message."""
    add_node_with_data(cluster, tmp_path / "whole", images)
    for name in ("bare", "empty"):
        add_node(cluster, tmp_path / name)
    config = configured(make_config, cluster, num_workers=3)
    with pytest.raises(DpRayError) as refused:
        start(config)
    message = str(refused.value)
    assert message.startswith("On node "), message
    assert all(f"node {name} (" in message for name in ("bare", "empty"))
    assert "node whole" not in message
    assert f"data.root = '$DISK/images': no such folder as {tmp_path}/" in message
    assert "Traceback" not in message
