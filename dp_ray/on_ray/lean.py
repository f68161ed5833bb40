"""Ray Train with less to start: the same controller and workers, without what goes unused here.

Ray imports torch in its controller and starts four more processes; each costs seconds of a small
machine, before the first step. Names that begin with an underscore are Ray 2.60's own: should one
be gone, tests/on_ray/test_lean.py fails, and runs start as slowly as with ``TorchTrainer``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

import ray
import ray.train
import ray.util
from ray.exceptions import GetTimeoutError
from ray.train import Result
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_UNUSED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
"""Ray Data's shards, of which there are none, and what tidies up a cluster after a crash: a Ray of
our own ends with the run."""

_PATIENCE_S = 30


@dataclass
class ProcessGroupConfig(BackendConfig):  # type: ignore[misc]
    """torch's process group, as ``ray.train.torch.TorchConfig`` sets it up.

    Its code for the controller does without torch.

    Attributes:
        timeout_s: of a collective operation.
    """

    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        """See Ray."""
        return _ProcessGroup

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[object]]:
        """See Ray."""
        from ray.train.torch.config import TorchConfigContextManager

        context: Callable[[], AbstractContextManager[object]] = TorchConfigContextManager
        return context


def head_start() -> None:
    """Starts, on a Ray of our own, what a controller would start first and wait for."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


class LocalTrainer(DataParallelTrainer):  # type: ignore[misc]
    """``TorchTrainer`` on a Ray of our own, whose environment its processes have already."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in _UNUSED]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        from ray.train.v2._internal.execution.controller import TrainController

        # Without a runtime environment Ray takes a process that is running already.
        controller = ray.remote(num_cpus=0)(TrainController).remote(**arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _ProcessGroup(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Rank 0 listens before the others call: who calls too early tries again a second later."""
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        loaded = worker_group.execute_async(_load)
        address, port = worker_group.execute_single(0, _listen)
        ray.get(loaded)
        worker_group.execute(
            _join, address, port, "nccl" if gpus else "gloo", backend_config.timeout_s
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Not waited for without end: a worker may hang in a collective."""
        del backend_config
        with suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=_PATIENCE_S)


def _load() -> None:
    import_module("torch.distributed")


def _listen() -> tuple[str, int]:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address = ray.util.get_node_ip_address()
    # Ours, because torch's own would listen on every interface that the machine has.
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    store = TCPStore(
        address,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    _listening.append(store)
    return address, store.port


def _join(address: str, port: int, backend: str, timeout_s: int) -> None:
    from torch.distributed import (  # type: ignore[attr-defined]
        TCPStore,
        init_process_group,
    )

    if address.startswith("127."):  # a cluster on one machine, whoever started it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    context = ray.train.get_context()
    store = TCPStore(address, port, is_master=False, wait_for_workers=False)
    init_process_group(
        backend,
        store=store,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=timeout_s),
    )


def _leave() -> None:
    from torch.distributed import destroy_process_group, is_initialized

    if is_initialized():
        destroy_process_group()


_listening: list[object] = []
"""On rank 0: where the workers meet, for as long as the process lives."""
