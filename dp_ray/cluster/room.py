"""Room for the workers: what no node has, Ray waits for without end and without a word."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from dp_ray.cluster.session import is_our_own
from dp_ray.config import ClusterConfig
from dp_ray.tuning.resources import missing_room

_INTERVAL_S = 1.0


def await_room(
    cluster: ClusterConfig,
    tell: Callable[[str], None],
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Returns when the nodes have what the fewest workers need, whoever uses it at the moment.

    A cluster may grow: what is missing is told, asked for, and waited for up to
    ``cluster.timeout_s``. A Ray of our own does not grow.

    Args:
        cluster: the workers; Ray is connected.
        tell: told what is missing.
        stop_requested: whether to wait no longer.

    Returns:
        False if it was still missing when a stop was requested.

    Raises:
        ConfigError: it is still missing.
    """
    missing = missing_room(cluster, _nodes())
    if missing is None:
        return True
    if is_our_own():
        raise missing
    tell(f"{missing} Waiting {cluster.timeout_s:g} s for it (cluster.timeout_s)")
    bundles = [cluster.worker_resources] * max(cluster.fewest_workers, 1)
    demand = placement_group(bundles, cluster.placement_strategy)  # what an autoscaler looks at
    deadline = time.monotonic() + cluster.timeout_s
    try:
        while (missing := missing_room(cluster, _nodes())) is not None:
            if stop_requested():
                return False
            if time.monotonic() > deadline:
                raise missing
            time.sleep(_INTERVAL_S)
        return True
    finally:
        remove_placement_group(demand)


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
