"""Settings that Ray reads from the environment when it is imported; set before that."""

from __future__ import annotations

import os

from dp_ray.config import ClusterConfig
from dp_ray.errors import ConfigError


def prepare_environment(cluster: ClusterConfig) -> None:
    """Usage reports off, quick start of workers where we are, a Ray of our own on the loopback.

    Args:
        cluster: tells whether a cluster is joined. What the user has set is left alone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Also the interval at which Ray Train polls for its workers to be up; the default is 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Paths in a configuration start where the command was given, for workers too.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if cluster.is_elastic:
        # How long a group of a size that is no longer to be had is waited for; the default is 60 s.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    if cluster_address(cluster.address) is None:
        # Not wanted on one machine: there is no dashboard to show them, and no other node to lose.
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Without this Ray replaces 127.0.0.1 by the machine's outer address and listens there.
        # The name is historical: it is how Ray keeps to the loopback on laptops.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def cluster_address(configured: str | None) -> str | None:
    """The cluster to join: the configured one, or the one a job was submitted to.

    Raises:
        ConfigError: the address is one to submit jobs to.
    """
    address = configured or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        return None  # Ray's own "local" would listen on the outer address
    if "://" in address:
        raise ConfigError(
            "cluster.address",
            address,
            "jobs are submitted there (ray job submit, see docs/cluster.md), and a run joins the "
            "cluster itself",
            "Give host:port, or local for a Ray of our own; RAY_ADDRESS counts where it is not set",
        )
    return address
