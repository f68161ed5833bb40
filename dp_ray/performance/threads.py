"""How many threads a worker should use."""

from __future__ import annotations

import os

from dp_ray.config.cluster import ClusterConfig


def worker_threads(cluster: ClusterConfig, workers_here: int) -> int:
    """Threads of a worker: the configured number, else its share of the machine.

    On a cluster that was joined the machine is not ours alone: a worker takes what Ray gives it.

    Args:
        cluster: of the run.
        workers_here: on this machine.
    """
    if cluster.threads_per_worker is not None:
        return cluster.threads_per_worker
    if cluster.address is not None and cluster.num_workers != 0:
        return cluster.cpus_per_worker
    return max(cluster.cpus_per_worker, usable_cores() // max(workers_here, 1))


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
