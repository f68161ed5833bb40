"""Room for the workers: what no node has, Ray waits for without end and without a word."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from dp_ray.config.cluster import ClusterConfig
from dp_ray.on_ray.session import is_our_own
from dp_ray.search.resources import missing_room

_INTERVAL_S = 1.0
_WATCH_INTERVAL_S = 10.0


def await_room(
    cluster: ClusterConfig,
    tell: Callable[[str], None],
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Returns when the nodes have what the fewest workers need, whoever uses it at the moment.

    A cluster may grow: what is missing is told, asked for, and waited for up to
    ``cluster.timeout_s``. A Ray of our own does not grow.

    Args:
        cluster: the workers; Ray is connected.
        tell: told what is missing.
        stop_requested: whether to wait no longer.

    Raises:
        ConfigError: it is still missing.
        KeyboardInterrupt: it was when a stop was requested.
    """
    missing = missing_room(cluster, _nodes())
    if missing is None:
        return
    if is_our_own():
        raise missing
    tell(f"{missing} Waiting {cluster.timeout_s:g} s for it (cluster.timeout_s)")
    bundles = [cluster.worker_resources] * max(cluster.fewest_workers, 1)
    demand = placement_group(bundles, cluster.placement_strategy)  # what an autoscaler looks at
    deadline = time.monotonic() + cluster.timeout_s
    try:
        while (missing := missing_room(cluster, _nodes())) is not None:
            if stop_requested():
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                raise missing
            time.sleep(_INTERVAL_S)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped while room was awaited; the same command with --resume goes on"
        ) from None
    finally:
        remove_placement_group(demand)


@contextmanager
def lost_room_told(cluster: ClusterConfig, tell: Callable[[str], None]) -> Iterator[None]:
    """While it is entered, tells of nodes whose loss leaves no room: Ray waits for others.

    Args:
        cluster: the workers; Ray is connected, and there was room for them.
        tell: told what is missing, once each time.
    """
    ended = threading.Event()

    def watch() -> None:
        told = False
        while not ended.wait(_WATCH_INTERVAL_S):
            missing = missing_room(cluster, _nodes())
            if missing is not None and not told:
                tell(f"{missing} Nodes were lost; the run goes on when there are others")
            told = missing is not None

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
