"""Ray Train: told of the job, and of what became of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dp_ray.artifacts.run_directory import RAY, REFUSED
from dp_ray.config.cluster import ClusterConfig
from dp_ray.errors import RunError
from dp_ray.on_ray.failures import explained
from dp_ray.on_ray.lean import LocalTrainer, ProcessGroupConfig
from dp_ray.on_ray.room import await_room, lost_room_told
from dp_ray.on_ray.session import is_our_own, ray_session, training_environment
from dp_ray.on_ray.worker import train_func_per_worker
from dp_ray.training.task import Task

_FAILURES_OF_ELASTIC = 100
"""Enough for nodes that come and go, and an end for a failure that is always the same."""


def train_on_ray(
    task: Task,
    callbacks: Sequence[UserCallback] = (),
    tell: Callable[[str], None] = lambda _text: None,
) -> None:
    """Runs the task on W Ray Train workers, to the end or to a stop request.

    Args:
        task: what to train.
        callbacks: told what workers report, in Ray Train's controller.
        tell: told what the workers wait for.

    Raises:
        DpRayError: what a worker found wrong, or a failure that Ray could not recover from.
        KeyboardInterrupt: a stop was requested before there was room for the workers.
    """
    cluster, run = task.config.cluster, task.run
    with ray_session(cluster):
        await_room(cluster, tell, run.stop_requested)
        # On others' clusters, and in trials that Tune may kill, Ray must tidy up after the run.
        trainer = (LocalTrainer if is_our_own() else DataParallelTrainer)(
            # Bound, and no train_loop_config: the controller would load it, and torch with it.
            functools.partial(train_func_per_worker, {"task": task}),
            backend_config=ProcessGroupConfig(timeout_s=int(cluster.timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=_num_workers(cluster),
                elastic_resize_monitor_interval_s=cluster.resize_interval_s,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=cluster.worker_resources,
                placement_strategy=cluster.placement_strategy,
            ),
            run_config=RunConfig(
                storage_path=run.private.uri,  # for Ray's own notes; it holds no checkpoints
                # A new name each time: Ray goes on with a name that it knows, and a run that was
                # given more steps would be over for it.
                name=f"{RAY}-{task.attempt}",
                failure_config=FailureConfig(max_failures=_max_failures(cluster)),
                callbacks=list(callbacks),
                worker_runtime_env={"env_vars": training_environment()},
            ),
        )
        try:
            with lost_room_told(cluster, tell):
                trainer.fit()
        except TrainingFailedError as error:
            raise explained(error) from error
        if run.private.exists(REFUSED):
            raise RunError(run.private.read(REFUSED).decode())


def _num_workers(cluster: ClusterConfig) -> int | tuple[int, int]:
    if isinstance(cluster.num_workers, int):
        return cluster.num_workers
    fewest, most = cluster.num_workers
    return fewest, most


def _max_failures(cluster: ClusterConfig) -> int:
    if cluster.max_failures is not None:
        return cluster.max_failures
    return _FAILURES_OF_ELASTIC if cluster.is_elastic else 0
