"""One Ray for many tests, as the product starts it for a run."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from dp_ray.config.cluster import ClusterConfig
from dp_ray.errors import RunError
from dp_ray.on_ray.trainer import ray_session

_TESTS = Path(__file__).parents[1]


class SharedRay:
    """Starts Ray for the first test that asks for it, and again after a test that needed its own.

    Its processes import modules from ``folder``, as they import a user's modules from the folder
    that a run is started in, and from ``tests/``.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running = ExitStack()
        self._is_running = False

    def start(self) -> None:
        """Start Ray with room for four workers and a search, unless it is running."""
        if self._is_running:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("PYTHONPATH", str(_TESTS), prepend=os.pathsep)
            cluster = ClusterConfig(num_workers=4)
            try:
                self._running.enter_context(ray_session(cluster, spare_cpus=1))
            except RunError:  # Ray gives its processes 30 s to start, which a busy machine exceeds
                ray.shutdown()
                self._running.enter_context(ray_session(cluster, spare_cpus=1))
        self._is_running = True

    def stop(self) -> None:
        """Shut Ray down, if it is running."""
        self._running.close()
        self._is_running = False
