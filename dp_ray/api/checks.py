"""Checks that take moments: they come before torch is imported and before a budget is solved."""

from __future__ import annotations

from dp_ray.config.cluster import ClusterConfig
from dp_ray.config.data import DataConfig
from dp_ray.config.run import Config
from dp_ray.config.search import SweepConfig
from dp_ray.config.validation import validate
from dp_ray.data.sources.registry import check_place
from dp_ray.errors import ConfigError, no_run
from dp_ray.extras import require
from dp_ray.on_ray.environment import check_environment, located
from dp_ray.on_ray.job import check_storage_path, in_job
from dp_ray.storage import open_folder


def check_run(config: Config) -> None:
    """Check where a run is to be kept, what Ray needs, and that the data is there.

    Raises:
        DpRayError: see the message.
    """
    cluster = check_cluster(config)
    _check_data(config.data, cluster.address)


def check_cluster(config: Config) -> ClusterConfig:
    """Check where a run is to be kept, and what Ray needs if it is used.

    Returns:
        The cluster with the address that is used.

    Raises:
        DpRayError: see the message.
    """
    check_storage_path(config.train.storage_path)
    cluster = located(config.cluster)
    if cluster.num_workers != 0:
        check_environment(cluster)
    return cluster


def check_search(sweep: SweepConfig) -> None:
    """Check the same of a search, as far as its space leaves no field open.

    Raises:
        DpRayError: see the message.
    """
    require("tune", "dp-ray tune", "see with --dry-run what it would cost")
    check_storage_path(sweep.storage_path)
    try:
        cluster = validate(ClusterConfig, sweep.training.get("cluster") or {})
        data = validate(DataConfig, sweep.training.get("data"))
    except ConfigError:  # the space may give what is missing: each trial is checked
        return
    _check_data(data, located(cluster).address)


def check_look(config: Config) -> None:
    """Check what ``dp-ray data`` needs: the data on this machine, and something that draws.

    Raises:
        DpRayError: see the message.
    """
    require("report", "dp-ray data")
    _check_data(config.data, None)


def check_run_exists(location: str) -> None:
    """Check that there is something at the path or URI of a run.

    Raises:
        RunError: there is nothing.
        StorageError: it cannot be opened.
    """
    folder = open_folder(location)
    try:
        found = folder.names()
    except OSError:  # a name that is too long
        found = []
    if not found:
        raise no_run(folder)


def _check_data(data: DataConfig, address: str | None) -> None:
    """Check the data on this machine; in a job the run does it, which knows where names may go."""
    if address is None and not in_job():
        check_place(data)
