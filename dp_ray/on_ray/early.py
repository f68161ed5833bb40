"""A Ray of our own, started while a run is planned."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from dp_ray.config.cluster import ClusterConfig
from dp_ray.errors import RunError
from dp_ray.on_ray.environment import prepare_environment

_GRACE_S = 0.1
"""Most of what is refused is refused at once: Ray is not started for it."""


class EarlyRay:
    """Starts Ray in a thread when it is entered, and shuts it down when it is left.

    Does nothing for runs without Ray, and for those that join a cluster: their mistakes are told
    before it is asked. A failure is not told either: whoever needs Ray meets it when trying again.

    Args:
        cluster: what Ray is needed for.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._tried = threading.Event()
        self._over = threading.Event()
        # Ray's processes end with the thread that started them: this one stays until the end.
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        if self._cluster.num_workers != 0 and self._cluster.address is None:
            self._thread.start()
        else:
            self._tried.set()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self) -> None:
        """Until it is up, or has failed."""
        self._tried.wait()

    def _keep(self) -> None:
        if self._over.wait(_GRACE_S):
            return
        try:
            prepare_environment(self._cluster)
            from dp_ray.on_ray.session import ray_session  # imports Ray

            with ray_session(self._cluster):
                if not self._over.is_set():
                    from dp_ray.on_ray.lean import head_start  # imports Ray Train

                    head_start()
                self._tried.set()
                self._over.wait()
        except RunError:
            pass
        finally:
            self._tried.set()
