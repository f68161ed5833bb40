"""How many trials fit at a time, and how many threads each of their workers gets."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dp_ray.config import ClusterConfig
from dp_ray.errors import ConfigError
from dp_ray.sweep_config import TuneConfig
from dp_ray.training.threads import usable_cores


def is_nested(cluster: ClusterConfig) -> bool:
    """Whether trials need workers of their own; a single one is the trial's own process."""
    return cluster.max_workers > 1


def resources_here(cluster: ClusterConfig) -> dict[str, float]:
    """What a Ray of our own has on this machine, by Ray's names: workers may take turns."""
    cpus = max(usable_cores(), cluster.max_workers * cluster.cpus_per_worker)
    return {"CPU": float(cpus), "GPU": float(torch.cuda.device_count())}


def trials_at_once(tune: TuneConfig, cluster: ClusterConfig, resources: Mapping[str, float]) -> int:
    """How many trials run at a time; the others queue.

    Args:
        tune: may ask for fewer.
        cluster: what a worker needs, and how many a trial has.
        resources: what there is, by Ray's names.

    Raises:
        ConfigError: not even one fits, on a machine that cannot grow.
    """
    workers = max(cluster.max_workers, 1)
    fits = [
        int(resources.get(name, 0.0) // (workers * needed))
        for name, needed in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker))
        if needed > 0
    ]
    if min(fits) < 1 and cluster.address is None:
        raise ConfigError(
            "cluster.num_workers",
            cluster.num_workers,
            f"a trial needs {workers} × {cluster.cpus_per_worker} CPUs and "
            f"{workers} × {cluster.gpus_per_worker:g} GPUs; there are "
            f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs",
            "Lower it, or give cluster.address",
        )
    return max(min(*fits, tune.max_concurrent_trials or fits[0]), 1)


def threads_of_worker(cluster: ClusterConfig, at_once: int) -> int:
    """A worker's share of the machine, if it is ours alone.

    Args:
        cluster: how many workers a trial has.
        at_once: how many trials run at a time.
    """
    if cluster.address is not None:
        return cluster.cpus_per_worker
    return max(cluster.cpus_per_worker, usable_cores() // (at_once * max(cluster.max_workers, 1)))
