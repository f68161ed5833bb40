"""A worker's place in a run: what it is made of, and how the workers come to agree on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn

from dp_ray.artifacts.checkpoint import Checkpoints
from dp_ray.artifacts.journal import Journal
from dp_ray.artifacts.notes import DataNote, EngineNote
from dp_ray.artifacts.run_directory import RunDirectory, deciding_fields
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.data.store import Dataset
from dp_ray.data.views import ViewMaker
from dp_ray.errors import DpRayError, ModelError, RunError
from dp_ray.gradients.engines.engine import Engine
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.imports import USER_ERRORS, cause_of
from dp_ray.keys import SamplingKeys
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger
from dp_ray.ledger.lock import OWNER_ENDS_S
from dp_ray.models.build import build_model
from dp_ray.models.pretrained import digest_of_tensors, load_pretrained
from dp_ray.objectives.objective import Objective
from dp_ray.objectives.registry import build_objective
from dp_ray.performance.allocator import keep_freed_memory
from dp_ray.performance.device import prepare_device
from dp_ray.performance.engine_choice import Choice
from dp_ray.privacy.mechanism import mechanism_of
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.privacy.sampling import Shard
from dp_ray.training.agreement import (
    check_same_arithmetic,
    open_same_dataset,
    share_parameters,
    stop_together,
)
from dp_ray.training.collective import Collective
from dp_ray.training.engine_agreement import agree_on_engine
from dp_ray.training.evaluation import evaluation_sizes
from dp_ray.training.execution import describe_execution
from dp_ray.training.probe import Probe, ReleaseObserver, SumObserver
from dp_ray.training.rehearsal import rehearse
from dp_ray.training.step import ShardWorker
from dp_ray.training.untrained import Untrained

if TYPE_CHECKING:
    from dp_ray.training.coordinator import Coordinator

_BLOCK_OF_OBJECTS = 16
"""Where each charge is a round trip to an object store, some are paid for together."""


@dataclass(frozen=True)
class Task:
    """What a worker must know to take part; the same for all of them.

    Attributes:
        config: the whole configuration.
        plan: the solved budget.
        run: where results go; on storage that all workers see.
        attempt: names this call of ``dp-ray train``, for the run's lock.
        profile: whether a trace of some steps is left in the run's private part.
        probe: of an audit.
    """

    config: Config
    plan: PrivacyPlan
    run: RunDirectory
    attempt: str
    profile: bool = False
    probe: Probe | None = None

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints.

        Where workers come and go, what was not saved must be drawn and charged again, so each
        step is saved.
        """
        if self.config.train.checkpoint_every is not None:
            return self.config.train.checkpoint_every
        return 1 if self.config.cluster.is_elastic else max(self.plan.steps // 10, 1)

    @property
    def charge_every(self) -> int:
        """Steps that are paid for at once."""
        if self.config.train.charge_every is not None:
            return self.config.train.charge_every
        return 1 if self.run.ledger.path is not None else _BLOCK_OF_OBJECTS


@dataclass(frozen=True)
class Lead:
    """What rank 0 has and the others do not.

    Attributes:
        coordinator: charges, adds noise, updates.
        ledger: what was charged; the coordinator's own.
        journal: what is written while the run goes on.
        sampling_keys: what the followers are given.
    """

    coordinator: Coordinator
    ledger: Ledger
    journal: Journal
    sampling_keys: SamplingKeys

    def close(self) -> None:
        """Writes what is buffered and gives the ledger's lock back."""
        try:
            self.journal.close()
        finally:
            self.ledger.close()


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


def open_session(
    task: Task, collective: Collective, *, device: torch.device, threads: int
) -> Session:
    """Opens data, model and, on rank 0, the run's files; all workers take part.

    Args:
        task: what to train.
        collective: the other workers.
        device: where this worker computes.
        threads: torch threads of this worker.

    Raises:
        DpRayError: the data, the model, the run's files or its ledger cannot be used.
    """
    torch.set_num_threads(threads)
    prepare_device(device)
    keep_freed_memory()
    objective = build_objective(task.config.objective, data_facts(task.config.data).num_classes)
    plan, loaded = task.plan, open_same_dataset(task.config.data, collective, objective.labels)
    dataset = loaded if task.probe is None else task.probe.plant(loaded)
    if collective.rank == 0 and loaded.skipped and task.config.cluster.address is not None:
        DataNote(skipped=loaded.skipped).write(task.run.private)  # the driver has no data
    # What rank 0 initialises is broadcast, so only its seed matters, and only it needs weights.
    seed = 0
    if collective.rank == 0:
        seed = task.run.key().seed_of_initial_parameters(task.config.seed)
    model = build_model(task.config.model, dataset.facts, init_seed=seed)
    weights_digest = load_pretrained(model, task.config.model) if collective.rank == 0 else None
    model = model.to(device)
    layout = ParameterLayout.of(model)
    share_parameters(collective, model)
    untrained = Untrained.of(model, layout)
    choice, engine = agree_on_engine(
        _settled(task) if collective.rank == 0 else task.config,
        dataset.facts,
        model,
        objective,
        steps=plan.steps,
        collective=collective,
        device=device,
    )
    choice = _rehearse(task, dataset, model, objective, choice, engine, collective, device)
    if collective.rank == 0:
        EngineNote.of(choice).write(task.run.private)
    execution = describe_execution(
        collective,
        threads=threads,
        device=device,
        engine=choice.engine,
        microbatch_size=choice.microbatch_size,
    )
    views = ViewMaker(task.config.augment, dataset.facts, device)
    check_same_arithmetic(
        collective,
        model=model,
        layout=layout,
        views=views,
        objective=objective,
        facts=dataset.facts,
        clipping=plan.clipping,
        max_grad_norm=plan.max_grad_norm,
        microbatch_size=choice.microbatch_size,
        engine=engine,
        device=device,
    )
    probe = task.probe
    differentiated = None if probe is None else probe.differentiated(task, dataset, model, device)
    lead, sum_observer = None, None
    if collective.rank == 0:
        observer = None
        if probe is not None:
            sum_observer = probe.sum_observer(task)
            observer = probe.release_observer(task, loaded, model, layout, views)
        lead = _open_lead(
            task,
            model,
            layout,
            dataset,
            objective,
            weights_digest,
            untrained.digest(),
            execution,
            observer,
        )
    try:
        worker = ShardWorker(
            model=model,
            layout=layout,
            data=dataset.train,
            shard=Shard.of(collective.rank, collective.world_size, len(dataset.train)),
            sampler=mechanism_of(plan).sampler,
            views=views,
            objective=objective,
            keys=_share_keys(lead, collective),
            clipping=plan.clipping,
            microbatch_size=choice.microbatch_size,
            engine=engine,
            device=device,
            differentiated=differentiated,
        )
    except BaseException:
        if lead is not None:
            lead.close()
        raise
    return Session(task, collective, dataset, worker, untrained, lead, sum_observer)


def _rehearse(
    task: Task,
    dataset: Dataset,
    model: nn.Module,
    objective: Objective,
    choice: Choice,
    engine: Engine,
    collective: Collective,
    device: torch.device,
) -> Choice:
    """Rehearse the run on this worker; all stop if one of them must. Returns the choice, noted."""
    problem: DpRayError | None = None
    notes: Sequence[str] = ()
    sizes = evaluation_sizes(len(dataset.test), collective.rank, collective.world_size)
    try:
        notes = rehearse(
            task.config,
            dataset.facts,
            model,
            objective,
            engine=engine,
            microbatch_size=choice.microbatch_size,
            device=device,
            evaluated=sizes,
        )
    except DpRayError as error:
        problem = error
    except USER_ERRORS as error:  # the others wait: they must hear of it
        name = task.config.model.name
        problem = ModelError(f"model.name = {name!r}: fails in the rehearsal: {cause_of(error)}")
    stop_together(collective, problem)
    return replace(choice, note="; ".join(filter(None, (choice.note, *notes))))


def _settled(task: Task) -> Config:
    """With the engine and size that this call of ``dp-ray train`` chose before workers failed."""
    try:
        before = EngineNote.read(task.run.private)
    except RunError:  # nothing chosen yet
        return task.config
    kept = {"engine": before.engine, "microbatch_size": before.microbatch_size}
    return task.config.model_copy(update={"train": task.config.train.model_copy(update=kept)})


def _open_lead(
    task: Task,
    model: nn.Module,
    layout: ParameterLayout,
    dataset: Dataset,
    objective: Objective,
    weights_digest: str | None,
    untrained_digest: str,
    execution: Execution,
    observer: ReleaseObserver | None,
) -> Lead:
    # Here, so that followers do not even load the code that draws noise.
    from dp_ray.training.coordinator import Coordinator

    # The configuration that the run was started with: one that allows more steps draws the same.
    decided = [deciding_fields(task.run.config()), dataset.digest, weights_digest]
    ledger = task.run.write_ledger(task.attempt, wait_s=OWNER_ENDS_S, block=task.charge_every)
    try:
        binding = _binding(ledger, decided, model)
        context = json.dumps(decided, sort_keys=True) if binding is None else binding
        run_key = task.run.key().bind(context)
        coordinator = Coordinator(
            task.config,
            task.plan,
            run_key=run_key,
            ledger=ledger,
            checkpoints=Checkpoints(task.run.checkpoints, ledger, run_key.derive("checkpoint")),
            initial_params=layout.join(dict(model.named_parameters())),
            layout=layout,
            data_digest=dataset.digest,
            weights_digest=weights_digest,
            untrained_digest=untrained_digest,
            execution=execution,
            binding=binding,
            observer=observer,
        )
        journal = Journal(
            task.run, task.plan, metrics=objective.metrics, repaired=ledger.repairs > 0
        )
        return Lead(coordinator, ledger, journal, run_key.sampling_keys())
    except BaseException:
        ledger.close()
        raise


def _binding(ledger: Ledger, decided: Sequence[object], model: nn.Module) -> str | None:
    """Return what the run's key is bound to: that of its first session, if there was one.

    Args:
        ledger: of the run.
        decided: configuration and digests of the data and of pretrained weights.
        model: as it is before the first step of a new run.

    Returns:
        A digest; None for a run of an earlier version, which bound its key to ``decided`` alone.
    """
    if ledger.sessions:
        return ledger.sessions[0].binding
    start = digest_of_tensors(dict(chain(model.named_parameters(), model.named_buffers())))
    return hashlib.sha256(json.dumps([*decided, start], sort_keys=True).encode()).hexdigest()


def _share_keys(lead: Lead | None, collective: Collective) -> SamplingKeys:
    """Followers get what they draw with; none of it leads to the noise."""
    data = bytes(96) if lead is None else lead.sampling_keys.to_bytes()
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    collective.broadcast_(tensor)
    return SamplingKeys.from_bytes(bytes(tensor.tolist()))
