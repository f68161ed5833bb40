"""A cluster of several nodes, which are processes of this machine, and a run that loses some."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import inject
from faults.inject import Fault
from ray._private.node import Node
from ray.cluster_utils import Cluster

from dp_ray.config.cluster import ClusterConfig
from dp_ray.config.run import Config
from dp_ray.on_ray import trainer
from dp_ray.on_ray.trainer import ray_session
from helpers.support import start


@contextmanager
def start_cluster() -> Iterator[Cluster]:
    """A head that runs no workers, joined; the rest is added by the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(inject.__file__).parent.parent))
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
        head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            with ray_session(ClusterConfig(address=made.address)):
                yield made
        finally:
            made.shutdown()


class Stage:
    """A run on the cluster's nodes, which come and go while its coordinator stands still.

    The coordinator stops before the charge of given steps, and is killed there by what happens to
    the nodes, so that what is repeated is known.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: Config,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        stops: tuple[int, ...],
    ) -> None:
        fault = Fault(str(folder), "before charge", stops, "pause")
        worker = functools.partial(inject.worker, fault=fault)
        monkeypatch.setattr(trainer, "train_func_per_worker", worker)
        self._cluster = cluster
        self._folder = folder
        self._errors: list[BaseException] = []
        self.result: dict[str, Any] = {}
        self.log = folder / "noise"
        self._thread = threading.Thread(target=self._train, args=(config,), daemon=True)
        self._thread.start()

    def _train(self, config: Config) -> None:
        try:
            self.result = start(config)
        except BaseException as error:
            self._errors.append(error)

    @property
    def workers(self) -> int:
        """How many there were in the last group."""
        return int((self._folder / "workers").read_text())

    def wait_for_stop(self, step: int, *, workers: int) -> None:
        """The coordinator of a group of so many workers stands before that step's charge."""
        self._wait((self._folder / f"struck {step}").exists)
        assert self.workers == workers

    def lose_node_of(self, rank: int) -> Node:
        """Kills the node on which a worker runs, with all that is on it."""
        lost = self._node_of(rank)
        self._cluster.remove_node(lost, allow_graceful=False)
        return lost

    def finish(self) -> dict[str, Any]:
        """The run's result."""
        self._wait(lambda: not self._thread.is_alive())
        assert not self._errors, self._errors
        return self.result

    def _node_of(self, rank: int) -> Node:
        worker = psutil.Process(int((self._folder / f"worker{rank}").read_text()))
        above = {process.pid for process in worker.parents()} - {os.getpid()}
        (node,) = [
            node
            for node in self._cluster.worker_nodes
            if node.all_processes["raylet"][0].process.pid in above
        ]
        return node

    def _wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 400
        while not until():
            assert not self._errors, self._errors
            assert time.monotonic() < deadline
            time.sleep(0.1)
