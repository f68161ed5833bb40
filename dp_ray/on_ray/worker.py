"""What each Ray Train worker runs: the training loop, with Ray's process group and reports."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import ray.train
import ray.train.torch

from dp_ray.artifacts.run_directory import REFUSED
from dp_ray.errors import DpRayError
from dp_ray.imports import search_users_folders_last
from dp_ray.on_ray.job import for_log
from dp_ray.on_ray.session import node_name
from dp_ray.performance.threads import worker_threads
from dp_ray.training.collective import ProcessGroup
from dp_ray.training.loop import train
from dp_ray.training.session import open_session
from dp_ray.training.task import Task


class _RayReports:
    """Hands metrics to Ray Train; a barrier for all workers."""

    def report(self, metrics: dict[str, float]) -> None:
        """See :class:`~dp_ray.training.loop.Observer`."""
        ray.train.report(metrics)


def train_func_per_worker(config: dict[str, Any]) -> None:
    """Takes part in a run as one of W workers.

    Args:
        config: ``{"task": Task}``, the same for every worker.
    """
    task: Task = config["task"]
    search_users_folders_last()
    if task.run.private.exists(REFUSED):
        return  # Ray starts failed workers anew, and this failure would be the same each time
    try:
        _train(task)
    except DpRayError as error:
        told = for_log(error, task.run.private)
        task.run.private.write(REFUSED, str(told).encode())
        raise told from None


def _train(task: Task) -> None:
    # What the first step imports, by all workers at once: later they would wait for one another.
    if ray.train.get_context().get_world_rank() == 0:
        import_module("dp_ray.training.coordinator")
    import_module("torch._dynamo")
    device = ray.train.torch.get_device()
    workers_here = int(ray.train.get_context().get_local_world_size())
    threads = worker_threads(task.config.cluster, workers_here)
    group = ProcessGroup(device, node_name(task.config.cluster))
    session = open_session(task, group, device=device, threads=threads)
    train(session, _RayReports())
