"""A worker's place in a run, from the setup that all workers share to what rank 0 alone has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dp_ray.data.store import Dataset
from dp_ray.keys import SamplingKeys
from dp_ray.performance.allocator import keep_freed_memory
from dp_ray.performance.device import prepare_device
from dp_ray.performance.memory import out_of_memory_in_one_line
from dp_ray.privacy.mechanism import mechanism_of
from dp_ray.privacy.sampling import Shard
from dp_ray.training.collective import Collective
from dp_ray.training.execution import describe_execution
from dp_ray.training.lead import Lead, open_lead
from dp_ray.training.probe import SumObserver
from dp_ray.training.setup import agree_on_computation, build_setup
from dp_ray.training.step import ShardWorker
from dp_ray.training.task import Task
from dp_ray.training.untrained import Untrained


@dataclass(frozen=True)
class Session:
    """One worker's place in one run.

    Attributes:
        task: what is trained.
        collective: the other workers.
        dataset: the examples; the same on all workers.
        worker: this worker's part of a step.
        untrained: what is not trained, as it was before the first step.
        lead: on rank 0, the coordinator and its files.
        sum_observer: on rank 0 of an audit, sees its sums.
    """

    task: Task
    collective: Collective
    dataset: Dataset
    worker: ShardWorker
    untrained: Untrained
    lead: Lead | None
    sum_observer: SumObserver | None = None


@out_of_memory_in_one_line(None)
def open_session(
    task: Task, collective: Collective, *, device: torch.device, threads: int
) -> Session:
    """Open data, model and, on rank 0, the run's files; all workers take part.

    Args:
        task: what to train.
        collective: the other workers.
        device: where this worker computes.
        threads: torch threads of this worker.

    Raises:
        DpRayError: the data, the model, the run's files or its ledger cannot be used, or a GPU has
            too little memory.
    """
    torch.set_num_threads(threads)
    prepare_device(device, collective.world_size)
    keep_freed_memory()
    setup = build_setup(task, collective, device)
    choice, engine = agree_on_computation(task, setup, collective, device)
    execution = describe_execution(
        collective,
        threads=threads,
        device=device,
        engine=choice.engine,
        microbatch_size=choice.microbatch_size,
    )
    model, dataset, probe = setup.model, setup.dataset, task.probe
    differentiated = None if probe is None else probe.differentiated(task, setup)
    lead, sum_observer = None, None
    if collective.rank == 0:
        observer = None
        if probe is not None:
            sum_observer = probe.sum_observer(task)
            observer = probe.release_observer(task, setup, differentiated)
        lead = open_lead(task, setup, execution, observer)
    try:
        keys, version = _share_keys(lead, collective)
        worker = ShardWorker(
            model=model,
            layout=setup.layout,
            data=dataset.train,
            shard=Shard.of(collective.rank, collective.world_size, len(dataset.train)),
            sampler=mechanism_of(task.plan).sampler,
            views=setup.views,
            objective=setup.objective,
            keys=keys,
            clipping=task.plan.clipping,
            microbatch_size=choice.microbatch_size,
            engine=engine,
            device=device,
            differentiated=differentiated,
            version=version,
        )
    except BaseException:
        if lead is not None:
            lead.close()
        raise
    return Session(task, collective, dataset, worker, setup.untrained, lead, sum_observer)


def _share_keys(lead: Lead | None, collective: Collective) -> tuple[SamplingKeys, int]:
    """Followers get what they draw with, and its version; none of it leads to the noise."""
    data = bytes(97)
    if lead is not None:
        data = bytes([lead.ledger.version]) + lead.sampling_keys.to_bytes()
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    collective.broadcast_(tensor)
    version, *keys = tensor.tolist()
    return SamplingKeys.from_bytes(bytes(keys)), version
