"""What every worker builds alike before the first step: data, network, and how it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dp_ray.artifacts.notes import DataNote, EngineNote
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.data.store import Dataset
from dp_ray.data.views import ViewMaker
from dp_ray.errors import DpRayError, ModelError, RunError
from dp_ray.gradients.engines.engine import Engine
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.imports import USER_ERRORS, cause_of
from dp_ray.models.build import build_model
from dp_ray.models.pretrained import load_pretrained
from dp_ray.objectives.objective import Objective
from dp_ray.objectives.registry import build_objective
from dp_ray.performance.engine_choice import Choice
from dp_ray.performance.memory import does_not_fit, peak_bytes, size_that_fits, start_peak
from dp_ray.privacy.mechanism import mechanism_of
from dp_ray.training.agreement import (
    check_same_arithmetic,
    open_same_dataset,
    share_parameters,
    stop_together,
)
from dp_ray.training.collective import Collective
from dp_ray.training.engine_agreement import agree_on_engine
from dp_ray.training.evaluation import evaluation_sizes
from dp_ray.training.identity import start_identity
from dp_ray.training.rehearsal import rehearse
from dp_ray.training.task import Task
from dp_ray.training.untrained import Untrained


@dataclass(frozen=True)
class Setup:
    """Data and network of a run; the same on all workers but for the digest of weights.

    Attributes:
        objective: what is learnt.
        loaded: the data as it was read.
        dataset: the data that is trained on; in an audit, canaries are planted in it.
        model: the network, on the device of training.
        layout: order of its parameters.
        untrained: what is not trained, as it was before the first step.
        views: the K augmentations.
        weights_digest: on rank 0, of the pretrained weights and of what was passed as an object.
    """

    objective: Objective
    loaded: Dataset
    dataset: Dataset
    model: nn.Module
    layout: ParameterLayout
    untrained: Untrained
    views: ViewMaker
    weights_digest: str | None


def build_setup(task: Task, collective: Collective, device: torch.device) -> Setup:
    """Open the data and build the network; all workers take part.

    Raises:
        DpRayError: the data or the network cannot be used.
    """
    config = task.config
    _announce(task, collective, "reading the data")
    objective = build_objective(config.objective, data_facts(config.data).num_classes)
    loaded = open_same_dataset(config.data, collective, objective.labels)
    dataset = loaded if task.probe is None else task.probe.plant(loaded)
    if collective.rank == 0 and loaded.skipped and config.cluster.address is not None:
        DataNote(skipped=loaded.skipped).write(task.run.private)  # the driver has no data
    # What rank 0 initialises is broadcast, so only its seed matters, and only it needs weights.
    _announce(task, collective, "building the network")
    seed, weights_digest = 0, None
    if collective.rank == 0:
        seed = task.run.key().seed_of_initial_parameters(config.seed)
    model = build_model(config.model, dataset.facts, init_seed=seed)
    if collective.rank == 0:
        weights_digest = load_pretrained(model, config.model)
        weights_digest = start_identity(
            config, weights_digest, model, objective, dataset.test_digest
        )
    model = model.to(device)
    layout = ParameterLayout.of(model)
    share_parameters(collective, model)
    return Setup(
        objective=objective,
        loaded=loaded,
        dataset=dataset,
        model=model,
        layout=layout,
        untrained=Untrained.of(model, layout),
        views=ViewMaker(config.augment, dataset.facts, device),
        weights_digest=weights_digest,
    )


def agree_on_computation(
    task: Task, setup: Setup, collective: Collective, device: torch.device
) -> tuple[Choice, Engine]:
    """Choose the engine, rehearse the run with it, and compare it between workers.

    Returns:
        The choice and the engine, the same on all workers.

    Raises:
        DpRayError: the network is no function, or workers compute differently.
    """
    plan, facts = task.plan, setup.dataset.facts
    _announce(task, collective, "choosing how to compute gradients")
    choice, engine = agree_on_engine(
        _settled(task) if collective.rank == 0 else task.config,
        facts,
        setup.model,
        setup.objective,
        steps=plan.steps,
        collective=collective,
        device=device,
    )
    _announce(task, collective, "rehearsing the network")
    choice = _rehearse(task, setup, choice, engine, collective, device)
    if collective.rank == 0:
        EngineNote.of(choice).write(task.run.private)
    check_same_arithmetic(
        collective,
        model=setup.model,
        layout=setup.layout,
        views=setup.views,
        objective=setup.objective,
        facts=facts,
        clipping=plan.clipping,
        max_grad_norm=plan.max_grad_norm,
        microbatch_size=choice.microbatch_size,
        engine=engine,
        device=device,
        sampler=mechanism_of(plan).sampler,
    )
    return choice, engine


def _announce(task: Task, collective: Collective, phase: str) -> None:
    if collective.rank == 0:
        task.announce(phase)


def _rehearse(
    task: Task,
    setup: Setup,
    choice: Choice,
    engine: Engine,
    collective: Collective,
    device: torch.device,
) -> Choice:
    """Rehearse the run on this worker; all stop if one of them must.

    Returns:
        The choice, with notes and the peak of a GPU's memory.
    """
    problem: DpRayError | None = None
    notes: Sequence[str] = ()
    tested, size = len(setup.dataset.test), choice.microbatch_size

    def rehearse_with(engine: Engine, size: int) -> Sequence[str]:
        return rehearse(
            task.config,
            setup.dataset.facts,
            setup.model,
            setup.objective,
            engine=engine,
            microbatch_size=size,
            device=device,
            evaluated=evaluation_sizes(tested, collective.rank, collective.world_size),
            untrained=setup.untrained,
        )

    start_peak(device)
    does_fit = True
    try:
        notes = rehearse_with(engine, size)
    except DpRayError as error:
        problem = error
    except torch.OutOfMemoryError:
        does_fit = False  # continued below, where the error no longer holds what was computed
    except USER_ERRORS as error:  # the others wait: they must hear of it
        name = task.config.model.name
        problem = ModelError(f"model.name = {name!r}: fails in the rehearsal: {cause_of(error)}")
    if not does_fit:
        fitting = size_that_fits(size, lambda size: rehearse_with(engine.uncompiled, size))
        problem = does_not_fit(size, fitting, task.config.augment.views)
    stop_together(collective, problem)
    note = "; ".join(filter(None, (choice.note, *notes)))
    return replace(choice, note=note, peak_bytes=peak_bytes(device))


def _settled(task: Task) -> Config:
    """With the engine and size that this call of ``dp-ray train`` chose before workers failed."""
    try:
        before = EngineNote.read(task.run.private)
    except RunError:  # nothing chosen yet
        return task.config
    kept = {"engine": before.engine, "microbatch_size": before.microbatch_size}
    return task.config.model_copy(update={"train": task.config.train.model_copy(update=kept)})
