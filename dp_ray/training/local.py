"""A run in this process, without Ray: for debugging, and for the smallest jobs."""

from __future__ import annotations

from dp_ray.performance.device import local_device
from dp_ray.performance.threads import worker_threads
from dp_ray.training.collective import Alone
from dp_ray.training.loop import Observer, train
from dp_ray.training.session import open_session
from dp_ray.training.task import Task


class NullObserver:
    """An observer that ignores reports: progress.json has the numbers."""

    def report(self, metrics: dict[str, float]) -> None:
        """See :class:`~dp_ray.training.loop.Observer`."""


def train_in_process(task: Task, observer: Observer, *, node: str | None = None) -> None:
    """Runs to the end or to a stop request; see :mod:`dp_ray.training.loop`.

    Args:
        task: what to train.
        observer: where progress is reported.
        node: of a cluster, where this process runs.
    """
    cluster = task.config.cluster
    device = local_device(cluster)
    threads = worker_threads(cluster, 1)
    session = open_session(task, Alone(node), device=device, threads=threads)
    train(session, observer)
