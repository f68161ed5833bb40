"""The training loop that every worker runs; with or without Ray, for any number of workers.

Each step: every worker sums its shard's clipped gradients; the sums are reduced to rank 0; the
coordinator there charges, adds noise and updates; the new parameters are broadcast. A worker whose
draw is empty takes part all the same.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from dp_ray.config import Config
from dp_ray.data.sampling import PoissonSampler, Shard
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.data.views import ViewMaker
from dp_ray.errors import DataError
from dp_ray.keys import RunKey, SamplingKeys
from dp_ray.models.build import build_model
from dp_ray.privacy.ledger import Ledger
from dp_ray.training.checkpoint import Checkpoint, newest_in
from dp_ray.training.collective import Collective
from dp_ray.training.evaluation import shared_accuracy
from dp_ray.training.journal import Journal
from dp_ray.training.layout import ParameterLayout
from dp_ray.training.plan import PrivacyPlan
from dp_ray.training.release import Outcome, publish
from dp_ray.training.run_directory import RunDirectory, deciding_fields
from dp_ray.training.step import Assignment, ShardWorker

if TYPE_CHECKING:
    from dp_ray.training.coordinator import Coordinator


@dataclass(frozen=True)
class Task:
    """What a worker must know to take part; the same for all of them.

    Attributes:
        config: the whole configuration.
        plan: the solved budget.
        run: where results go; on storage that all workers see.
    """

    config: Config
    plan: PrivacyPlan
    run: RunDirectory


class Observer(Protocol):
    """Told of progress, at the same steps on every worker."""

    def report(self, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        """Takes releases (never private numbers) and, on rank 0, perhaps a checkpoint."""
        ...


@dataclass(frozen=True)
class _Lead:
    """What rank 0 has and the others do not."""

    coordinator: Coordinator
    ledger: Ledger
    journal: Journal
    sampling_keys: SamplingKeys


def train(
    task: Task, collective: Collective, observer: Observer, *, device: torch.device, threads: int
) -> None:
    """Takes part in a run until it is finished or stopped; rank 0 leaves the results on disk.

    Args:
        task: what to train.
        collective: the other workers.
        observer: where progress is reported.
        device: where this worker computes.
        threads: torch threads of this worker.

    Raises:
        DpRayError: the data, the model, the run's files or its ledger cannot be used.
    """
    torch.set_num_threads(threads)
    dataset = open_dataset(task.config.data)
    model = build_model(task.config.model, dataset.facts, init_seed=_init_seed(task, collective))
    model.to(device)
    layout = ParameterLayout.of(model)
    _agree_on_data(collective, dataset.digest)
    _share_untrained(collective, model, layout)
    lead = _make_lead(task, collective, model, layout, dataset, device, threads)
    worker = _make_worker(task, collective, lead, model, layout, dataset, device)
    try:
        _run(task, collective, observer, lead, worker, dataset)
    finally:
        if lead is not None:
            lead.journal.close()
            lead.ledger.close()


def _run(
    task: Task,
    collective: Collective,
    observer: Observer,
    lead: _Lead | None,
    worker: ShardWorker,
    dataset: Dataset,
) -> None:
    tenth = max(task.plan.steps // 10, 1)
    evaluate_every = task.config.train.evaluate_every or tenth
    checkpoint_every = task.config.train.checkpoint_every or tenth
    params = torch.zeros(worker.layout.size, device=worker.device)
    _broadcast(collective, params, None if lead is None else lead.coordinator.params)
    reported = 0  # the step of the last report: the same on all workers
    while True:
        started = time.monotonic()
        assignment = _share_assignment(collective, lead)
        evaluate = assignment.done or assignment.step % evaluate_every == 0
        save = assignment.done or assignment.step % checkpoint_every == 0
        if (evaluate or save) and (assignment.step != reported or assignment.done):
            if evaluate:
                _evaluate(collective, lead, worker, dataset, assignment.step)
            if lead is None:
                observer.report({}, None)
            else:
                saved = lead.coordinator.checkpoint() if save else None
                observer.report(lead.journal.releases(), saved)
            reported = assignment.step
        if assignment.done:
            break
        total = worker.clipped_sum(params, step=assignment.step, incarnation=assignment.incarnation)
        collective.reduce_(total.vector)
        collective.reduce_(total.statistics)
        if lead is not None and lead.coordinator.release(assignment, total):
            seconds = time.monotonic() - started
            lead.journal.stepped(assignment.step, lead.ledger.charges, total.statistics, seconds)
        _broadcast(collective, params, None if lead is None else lead.coordinator.params)
    if lead is not None:
        _finish(task, lead, worker)


def _make_lead(
    task: Task,
    collective: Collective,
    model: nn.Module,
    layout: ParameterLayout,
    dataset: Dataset,
    device: torch.device,
    threads: int,
) -> _Lead | None:
    if collective.rank != 0:
        return None
    # Here, so that followers do not even load the code that draws noise.
    from dp_ray.training.coordinator import Coordinator

    context = json.dumps([deciding_fields(task.config), dataset.digest], sort_keys=True)
    run_key = task.run.run_key().bind(context)
    ledger = task.run.open_ledger(writable=True)
    fingerprint = {
        "workers": collective.world_size,
        "threads": threads,
        "microbatch_size": task.config.train.microbatch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
    }
    coordinator = Coordinator(
        task.config,
        task.plan,
        run_key=run_key,
        ledger=ledger,
        initial_params=layout.join(dict(model.named_parameters())),
        layout=layout,
        data_digest=dataset.digest,
        checkpoint=newest_in(task.run.checkpoints),
        fingerprint=fingerprint,
    )
    return _Lead(coordinator, ledger, Journal(task.run, task.plan), run_key.sampling_keys())


def _make_worker(
    task: Task,
    collective: Collective,
    lead: _Lead | None,
    model: nn.Module,
    layout: ParameterLayout,
    dataset: Dataset,
    device: torch.device,
) -> ShardWorker:
    plan = task.plan
    return ShardWorker(
        model=model,
        layout=layout,
        data=dataset.train,
        shard=Shard.of(collective.rank, collective.world_size, plan.num_examples),
        sampler=PoissonSampler(plan.num_examples, plan.expected_batch_size),
        views=ViewMaker(task.config.augment, dataset.facts, device),
        keys=_share_keys(lead, collective),
        max_grad_norm=plan.max_grad_norm,
        microbatch_size=task.config.train.microbatch_size,
        device=device,
    )


def _init_seed(task: Task, collective: Collective) -> int:
    """Rank 0's parameters are broadcast, so only it needs the seed that the key gives."""
    if collective.rank != 0:
        return 0
    return initial_seed(task.run.run_key())


def initial_seed(run_key: RunKey) -> int:
    """Seed of the initial parameters: a function of the run key that does not reveal it."""
    return int.from_bytes(run_key.derive("init")[:8], "little") >> 1


def _share_keys(lead: _Lead | None, collective: Collective) -> SamplingKeys:
    """Followers get what they draw with; none of it leads to the noise."""
    data = bytes(96) if lead is None else lead.sampling_keys.to_bytes()
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    collective.broadcast_(tensor)
    return SamplingKeys.from_bytes(bytes(tensor.tolist()))


def _agree_on_data(collective: Collective, digest: str) -> None:
    """All workers must hold the same examples under the same ids, or shards would overlap."""
    own = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
    theirs = own.clone()
    collective.broadcast_(theirs)
    differing = torch.tensor([float(not torch.equal(own, theirs))])
    collective.reduce_(differing)
    collective.broadcast_(differing)
    if differing.item():
        raise DataError(
            f"{int(differing.item())} of {collective.world_size} workers read other training data "
            "than the first one: every node needs the same files, and a loader of your own must "
            "return the same examples in the same order each time"
        )


def _share_untrained(collective: Collective, model: nn.Module, layout: ParameterLayout) -> None:
    """Frozen parameters and buffers as rank 0 has them, whatever initialised them elsewhere."""
    for name, tensor in model.state_dict().items():
        if name not in layout.shapes:
            collective.broadcast_(tensor)


def _share_assignment(collective: Collective, lead: _Lead | None) -> Assignment:
    message = torch.zeros(3, dtype=torch.int64)
    if lead is not None:
        assignment = lead.coordinator.assignment()
        done = assignment.done or lead.journal.stop_requested()
        message = torch.tensor([assignment.step, assignment.incarnation, int(done)])
    collective.broadcast_(message)
    step, incarnation, done = message.tolist()
    return Assignment(step, incarnation, bool(done))


def _broadcast(collective: Collective, vector: Tensor, source: Tensor | None) -> None:
    if source is not None:
        vector.copy_(source)
    collective.broadcast_(vector)


def _evaluate(
    collective: Collective, lead: _Lead | None, worker: ShardWorker, dataset: Dataset, step: int
) -> None:
    published = torch.zeros(worker.layout.size, device=worker.device)
    _broadcast(collective, published, None if lead is None else lead.coordinator.published_params)
    accuracy = shared_accuracy(
        worker.model, worker.layout, published, dataset.test, worker.views, collective
    )
    if lead is not None:
        lead.journal.evaluated(step, lead.ledger.charges, accuracy, lead.coordinator.epsilon)


def _finish(task: Task, lead: _Lead, worker: ShardWorker) -> None:
    coordinator, journal = lead.coordinator, lead.journal
    publish(
        task.run,
        task.config,
        task.plan,
        model=worker.model,
        params=worker.layout.split(coordinator.published_params),
        outcome=Outcome(
            finished=coordinator.assignment().done,
            steps=coordinator.assignment().step,
            history=coordinator.history,
            epsilon=coordinator.epsilon,
            accuracy=journal.accuracy,
            seconds=journal.seconds,
        ),
    )
