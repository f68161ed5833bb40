"""What a worker needs, and whether a cluster can ever have room for the workers."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.support import MakeConfig

from dp_ray.config.cluster import ClusterConfig
from dp_ray.errors import ConfigError
from dp_ray.on_ray.environment import located
from dp_ray.search.resources import missing_room


def test_what_ray_reserves_for_a_worker() -> None:
    assert ClusterConfig().worker_resources == {"CPU": 1.0}
    cluster = ClusterConfig(
        cpus_per_worker=2,
        gpus_per_worker=0.5,
        resources_per_worker={"fast_disk": 1, "memory": 4e9},
        accelerator_type="A100",
    )
    assert cluster.worker_resources == {
        "CPU": 2.0,
        "GPU": 0.5,
        "fast_disk": 1.0,
        "memory": 4e9,
        "accelerator_type:A100": 0.001,
    }


@pytest.mark.parametrize(
    ("section", "field", "message"),
    [
        ({"resources_per_worker": {"GPU": 1}}, "resources_per_worker", "gpus_per_worker"),
        ({"resources_per_worker": {"CPU": 1}}, "resources_per_worker", "cpus_per_worker"),
        ({"resources_per_worker": {"disk": 1.5}}, "resources_per_worker", "whole numbers only"),
        ({"resources_per_worker": {"disk": 0}}, "resources_per_worker", "greater than 0"),
        ({"placement_strategy": "pack"}, "placement_strategy", "STRICT_SPREAD"),
        ({"namespace": ""}, "namespace", "at least 1"),
        ({"accelerator_type": ""}, "accelerator_type", "at least 1"),
    ],
)
def test_bad_resources_are_refused(
    make_config: MakeConfig, section: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        make_config(cluster=section)
    assert refused.value.field == f"cluster.{field}"


NODES = [
    {"CPU": 8.0, "memory": 1e10, "node:10.0.0.1": 1.0, "object_store_memory": 1e9},
    {"CPU": 4.0, "GPU": 2.0, "accelerator_type:A100": 1.0},
]


@pytest.mark.parametrize(
    "section",
    [
        {"num_workers": 12},
        {"num_workers": 2, "cpus_per_worker": 4, "placement_strategy": "STRICT_SPREAD"},
        {"num_workers": 2, "cpus_per_worker": 4, "placement_strategy": "STRICT_PACK"},
        {"num_workers": [1, 99], "cpus_per_worker": 8},
        {"num_workers": 4, "gpus_per_worker": 0.5, "accelerator_type": "A100"},
        {"num_workers": 0},
    ],
)
def test_room_for_the_fewest_workers(section: dict[str, Any]) -> None:
    assert missing_room(ClusterConfig(**section), NODES) is None


@pytest.mark.parametrize(
    ("section", "field", "message"),
    [
        ({"num_workers": 13}, "num_workers", "room for 12 of 13"),
        ({"cpus_per_worker": 9}, "cpus_per_worker", "needs 9 CPU, and there is room for 0 of 1"),
        ({"gpus_per_worker": 3}, "gpus_per_worker", "needs 1 CPU, 3 GPU"),
        ({"num_workers": 5, "gpus_per_worker": 0.5}, "num_workers", "room for 4 of 5"),
        ({"cpus_per_worker": 6, "gpus_per_worker": 1}, "num_workers", "room for 0 of 1"),
        ({"resources_per_worker": {"disk": 1}}, "resources_per_worker", "1 CPU, 1 disk"),
        ({"accelerator_type": "H100"}, "accelerator_type", r"8 CPU, 1e\+10 memory \| 4 CPU, 2 GPU"),
        ({"num_workers": 9, "placement_strategy": "STRICT_PACK"}, "num_workers", "8 of 9"),
        ({"num_workers": 3, "placement_strategy": "STRICT_SPREAD"}, "num_workers", "2 of 3"),
    ],
)
def test_what_would_be_waited_for_without_end(
    section: dict[str, Any], field: str, message: str
) -> None:
    missing = missing_room(ClusterConfig(**section), NODES)
    assert isinstance(missing, ConfigError)
    assert missing.field == f"cluster.{field}"
    with pytest.raises(ConfigError, match=message):
        raise missing


def test_a_tenth_is_there_ten_times() -> None:
    cluster = ClusterConfig(num_workers=10, gpus_per_worker=0.1)
    assert missing_room(cluster, [{"CPU": 10.0, "GPU": 1.0}]) is None


def test_a_cluster_without_nodes_has_no_room() -> None:
    missing = missing_room(ClusterConfig(placement_strategy="STRICT_PACK"), [])
    assert "nodes that have nothing" in str(missing)


@pytest.mark.parametrize(
    ("configured", "environment", "expected"),
    [
        (None, None, None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),  # as in a submitted job
        ("auto", "10.0.0.1:6379", "auto"),
        ("local", "10.0.0.1:6379", None),
        (None, "local", None),
    ],
)
def test_which_cluster_is_joined(
    monkeypatch: pytest.MonkeyPatch,
    configured: str | None,
    environment: str | None,
    expected: str | None,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert located(ClusterConfig(address=configured)).address == expected


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001"])
def test_an_address_to_submit_to_is_not_joined(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"cluster\.address.*ray job submit"):
        located(ClusterConfig())
