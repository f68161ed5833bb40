"""Ray: started or joined, told of the job, and left as it was found."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from dp_ray.cluster.worker import train_func_per_worker
from dp_ray.config import ClusterConfig
from dp_ray.errors import DpRayError, RunError
from dp_ray.training.run_directory import RAY, REFUSED
from dp_ray.training.session import Task
from dp_ray.training.threads import usable_cores

_FAILURES_OF_ELASTIC = 100
"""Enough for nodes that come and go, and an end for a failure that is always the same."""


def train_on_ray(task: Task, callbacks: Sequence[UserCallback] = ()) -> None:
    """Runs the task on W Ray Train workers, to the end or to a stop request.

    Args:
        task: what to train.
        callbacks: told what workers report, in Ray Train's controller.

    Raises:
        DpRayError: what a worker found wrong, or a failure that Ray could not recover from.
    """
    cluster, run = task.config.cluster, task.run
    resources = {"CPU": float(cluster.cpus_per_worker)}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    with ray_session(cluster):
        trainer = TorchTrainer(
            train_func_per_worker,
            train_loop_config={"task": task},
            torch_config=TorchConfig(timeout_s=int(cluster.timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=_num_workers(cluster),
                elastic_resize_monitor_interval_s=cluster.resize_interval_s,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                storage_path=run.private.uri,  # for Ray's own notes; it holds no checkpoints
                # A new name each time: Ray goes on with a name that it knows, and a run that was
                # given more steps would be over for it.
                name=f"{RAY}-{task.attempt}",
                failure_config=FailureConfig(max_failures=_max_failures(cluster)),
                callbacks=list(callbacks),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _explain(error) from error
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


@contextmanager
def ray_session(cluster: ClusterConfig, *, spare_cpus: int = 0) -> Iterator[None]:
    """A connection to Ray: an existing one, the configured cluster, or one of our own.

    A local Ray that was started here listens on 127.0.0.1 only, and is shut down at the end.

    Args:
        cluster: where.
        spare_cpus: for processes that wait for others, beyond this machine's own.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    environment = {"PYTHONPATH": os.pathsep.join(_import_paths())}
    address = cluster.address
    try:
        if address is not None:
            ray.init(address=address, runtime_env={"env_vars": environment}, log_to_driver=False)
        else:
            environment["GLOO_SOCKET_IFNAME"] = "lo"
            ray.init(
                address="local",  # else Ray would join whatever cluster this machine last saw
                num_cpus=spare_cpus
                + max(usable_cores(), cluster.max_workers * cluster.cpus_per_worker),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": environment},
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        place = address or "this machine"
        raise RunError(f"Ray on {place} cannot be reached or started: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _import_paths() -> list[str]:
    """Where workers find a user's own loaders and models: here, and where Python looks already."""
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return [str(Path.cwd()), *inherited]


def _explain(error: TrainingFailedError) -> DpRayError:
    """The user's mistake inside Ray's report of it, or a short account of the failure."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, DpRayError):
                return cause
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    first = failures[0] if failures else error
    return RunError(
        f"training failed on a worker: {first}\n"
        "What was charged is in the ledger; --resume goes on from the last checkpoint"
    )
