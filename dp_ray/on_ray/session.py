"""Ray: started or joined, and left as it was found."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from dp_ray.config.cluster import ClusterConfig
from dp_ray.errors import RunError
from dp_ray.imports import USERS_FOLDERS
from dp_ray.on_ray.failures import first_sentences
from dp_ray.on_ray.job import IN_JOB, in_job, variables_of_job
from dp_ray.performance.threads import usable_cores

_own: set[str] = set()
"""Where the Rays listen that were started here."""


def is_our_own() -> bool:
    """Whether the Ray that this process is connected to was started by it, and ends with it."""
    return ray.get_runtime_context().gcs_address in _own


def node_name(cluster: ClusterConfig) -> str | None:
    """What people call the node that this process runs on; None on a machine of our own.

    Its name for Ray is its address, unless it was started with another (``--node-name``).
    """
    if cluster.address is None:
        return None
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    name, host = node["NodeName"], node["NodeManagerHostname"]
    return f"node {name}" if name == host else f"node {name} ({host})"


@contextmanager
def ray_session(
    cluster: ClusterConfig, *, spare_cpus: int = 0, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """A connection to Ray: an existing one, the configured cluster, or one of our own.

    A local Ray that was started here listens on 127.0.0.1 only, and is shut down at the end.

    Args:
        cluster: where.
        spare_cpus: for processes that wait for others, beyond this machine's own.
        environment: what all processes of the job have in their environment.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    address, variables = cluster.address, dict(environment or {})
    options: dict[str, Any] = {
        "namespace": cluster.namespace,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    paths = _import_paths()
    # Ray would put the user's folder before all others in workers, where it hides Python's modules.
    job = JobConfig()
    job._py_driver_sys_path = _NothingMore()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is not None:
            given = variables_of_job()
            variables = {n: v for n, v in {**variables, **paths}.items() if n not in given}
            ray.init(address, job_config=job, runtime_env={"env_vars": variables}, **options)
        else:
            # What Ray is started with its processes have: those that it keeps ready can be taken.
            with _in_environment(paths):
                ray.init(
                    address="local",  # else Ray would join whatever cluster this machine last saw
                    num_cpus=spare_cpus
                    + max(usable_cores(), cluster.max_workers * cluster.cpus_per_worker),
                    include_dashboard=False,
                    job_config=job,
                    runtime_env={"env_vars": variables} if variables else None,
                    _node_ip_address="127.0.0.1",
                    **options,
                )
            _own.add(ray.get_runtime_context().gcs_address)
    except Exception as error:  # where it takes too long to start, Ray raises nothing narrower
        problem = f"Ray on {address or 'this machine'} cannot be reached or started: {error}"
        if address is not None:
            problem += (
                ". Check cluster.address, and that the token here (RAY_AUTH_TOKEN_PATH, or "
                "~/.ray/auth_token) is the cluster's"
            )
        raise RunError(problem) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's core put its own in place
    try:
        with first_sentences():
            yield
    finally:
        ray.shutdown()
        _own.clear()  # a process is connected to one at a time


@contextmanager
def _in_environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def training_environment() -> dict[str, str]:
    """What processes that train need in their environment, and the user has not set.

    A step frees and asks for the same large blocks again. glibc would give them back to the kernel
    in between, and their pages would be faulted in anew: 10 to 30 % of a step on CPUs.
    """
    settings = {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        # Ray trains in a thread, and the arenas of threads cannot hold large blocks.
        "MALLOC_ARENA_MAX": "1",
    }
    known = {IN_JOB: "1"} if in_job() else {}
    return known | {name: os.environ.get(name, value) for name, value in settings.items()}


class _NothingMore(list[str]):
    """A list of folders that Ray cannot add to."""

    def extend(self, _folders: Iterable[str]) -> None:
        """Leaves the list as it is."""


def _import_paths() -> dict[str, str]:
    """Variables that say where workers find a user's own loaders and models.

    The user's folder is no part of PYTHONPATH, which comes before Python's own modules.
    """
    here = str(Path.cwd())
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if str(Path(__file__).parents[2]) == here and here not in inherited:
        inherited.append(here)  # dp_ray itself is there, and may be installed nowhere else
    variables = {USERS_FOLDERS: here}
    return {**variables, "PYTHONPATH": os.pathsep.join(inherited)} if inherited else variables
