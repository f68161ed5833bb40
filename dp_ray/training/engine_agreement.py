"""How the workers come to use one engine: rank 0 chooses, each checks.

The choice goes into the ledger's session record, and a run that is resumed keeps it, because sums
round otherwise.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.gradients.engines.engine import Engine, in_one_line
from dp_ray.gradients.engines.registry import COMPILED, ENGINES, is_users_own
from dp_ray.objectives.objective import Objective
from dp_ray.performance.engine_choice import Choice, choose
from dp_ray.performance.engine_trial import EngineTrial, Measurements
from dp_ray.training.collective import Collective


def agree_on_engine(
    config: Config,
    facts: DataFacts,
    model: nn.Module,
    objective: Objective,
    *,
    steps: int,
    collective: Collective,
    device: torch.device,
) -> tuple[Choice, Engine]:
    """Rank 0 chooses, each worker checks; all of them take part.

    Args:
        config: what its section ``train`` gives is kept, and what it leaves open is chosen.
        facts: shape of the images.
        model: on ``device``.
        objective: of the run.
        steps: T; looking for a better choice must pay within the run.
        collective: the workers.
        device: where this worker computes.

    Returns:
        The choice (note and seconds on rank 0 only) and the engine, compiled if it is of that kind.
        Where one worker cannot use it, all use the fastest that all can, and the note says why.
    """
    trial, choice = EngineTrial(config, facts, model, objective, device), Choice("vmap", 1)
    measure = Measurements(config, trial)
    if collective.rank == 0:
        choice = _choose_here(config, facts, model, steps, measure)
    wanted = config.train.engine
    names = (*ENGINES, wanted) if is_users_own(wanted) else ENGINES
    refused: list[str] = []
    while True:
        message = torch.tensor([names.index(choice.engine), choice.microbatch_size])
        collective.broadcast_(message)
        index, size = message.tolist()
        choice = replace(choice, engine=names[index], microbatch_size=size)
        problem = trial.problem(choice.engine, size)
        problems = torch.tensor([int(problem != "")])
        collective.reduce_(problems)
        collective.broadcast_(problems)
        if not problems.item():
            return choice, trial.engine(choice.engine)
        why = problem or f"{problems.item()} of {collective.world_size} workers cannot use it"
        refused.append(choice.engine)
        note = "; ".join(filter(None, [choice.note, f"{choice.engine} cannot be used: {why}"]))
        choice = Choice("vmap", size, note=note)
        if collective.rank == 0:
            choice = replace(choice, engine=_next_best(refused, size, measure))


def _next_best(refused: list[str], size: int, measure: Measurements) -> str:
    """The fastest of the others that need no compiling, or are compiled already."""
    left: list[str] = [
        name
        for name in ENGINES
        if name not in refused and (name in COMPILED or measure.knows(name, size))
    ]
    seconds = {name: measure(name, size) for name in left}
    best: str = "vmap"
    for name in left:
        if seconds[name] < seconds.get(best, math.inf):
            best = name
    return best


def _choose_here(
    config: Config, facts: DataFacts, model: nn.Module, steps: int, measure: Measurements
) -> Choice:
    """On this machine. Raises nothing: the other workers wait for the answer."""
    try:
        choice = choose(config, facts, model, steps=steps, measure=measure, peak=measure.peak)
    except Exception as error:  # of the network at an untried size, say
        note = f"no engine could be chosen: {in_one_line(error)}"
        return Choice("vmap", config.train.microbatch_size or 1, note=note)
    reasons = [
        f"{name} cannot be used: {why}"
        for name, why in measure.failures.items()
        if name != choice.engine
    ]
    return replace(choice, note="; ".join(reasons))
