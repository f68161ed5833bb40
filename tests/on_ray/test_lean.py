"""What Ray is started with, and without: facts that start-up time rests on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray.train
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dp_ray.config.cluster import ClusterConfig
from dp_ray.on_ray.early import EarlyRay
from dp_ray.on_ray.lean import _UNUSED, LocalTrainer, ProcessGroupConfig
from dp_ray.on_ray.session import is_our_own, ray_session, training_environment


def test_ray_has_what_is_left_out_under_the_names_that_are_known() -> None:
    def callbacks(trainer: type[DataParallelTrainer]) -> set[str]:
        made = trainer(lambda: None)._create_default_callbacks()
        return {type(callback).__name__ for callback in made}

    usual = callbacks(DataParallelTrainer)
    assert usual >= _UNUSED
    assert callbacks(LocalTrainer) == usual - _UNUSED
    assert hasattr(DataParallelTrainer, "_initialize_and_run_controller")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("dp_ray.cli", {"torch", "ray"}),
        ("dp_ray.on_ray.early", {"torch", "ray"}),
        ("dp_ray.on_ray.session", {"torch", "ray.train"}),  # Ray is starting meanwhile
        ("dp_ray.on_ray.lean", {"torch"}),  # Ray Train's controller imports it
        ("dp_ray.on_ray.worker", {"opacus", "sklearn", "torchvision"}),
    ],
)
def test_what_is_imported_late(module: str, unwanted: set[str]) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not unwanted & set(found.stdout.split())


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_workers_meet_and_have_the_allocators_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own setting is kept; none is left behind in this process."""

    def witness() -> None:
        rank = ray.train.get_context().get_world_rank()
        total = torch.tensor([rank + 1.0])
        dist.all_reduce(total)
        seen = {"total": total.item(), "environment": dict(os.environ)}
        (tmp_path / str(rank)).write_text(json.dumps(seen), encoding="utf-8")

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    before = dict(os.environ)
    with ray_session(ClusterConfig(num_workers=2)):
        assert is_our_own()
        assert dict(os.environ).items() >= before.items()
        LocalTrainer(
            witness,
            backend_config=ProcessGroupConfig(timeout_s=60),
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                storage_path=str(tmp_path / "ray"),
                worker_runtime_env={"env_vars": training_environment()},
            ),
        ).fit()
    for rank in ("0", "1"):
        seen = json.loads((tmp_path / rank).read_text(encoding="utf-8"))
        assert seen["total"] == 3.0
        environment = seen["environment"]
        assert environment["MALLOC_MMAP_THRESHOLD_"] == "1073741824"
        assert environment["MALLOC_TRIM_THRESHOLD_"] == "2147483647"
        assert environment["MALLOC_ARENA_MAX"] == "2"
        assert environment["GLOO_SOCKET_IFNAME"] == "lo"
        assert str(Path.cwd()) in environment["PYTHONPATH"].split(os.pathsep)
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_an_early_ray_is_gone_with_the_run() -> None:
    cluster = ClusterConfig(num_workers=1)
    with pytest.raises(ValueError, match="refused"), EarlyRay(cluster) as early:
        raise ValueError("refused")
    assert not ray.is_initialized()
    with EarlyRay(cluster) as early:
        early.wait()
        assert ray.is_initialized()
    assert not ray.is_initialized()
    for other in (ClusterConfig(num_workers=0), ClusterConfig(address="127.0.0.1:1")):
        with EarlyRay(other) as early:
            early.wait()
            assert not ray.is_initialized()
