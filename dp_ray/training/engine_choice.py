"""Which engine and which microbatch size a run uses: about time alone, as sums are the same.

Rank 0 chooses for all workers by short measurements (``engine_trial.py``). The choice goes into
the ledger's session record, and a run that is resumed keeps it, because sums round otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import nn

from dp_ray.config import Config
from dp_ray.data.catalog import DataFacts
from dp_ray.privacy.engines import Engine, EngineName, in_one_line
from dp_ray.training.collective import Collective
from dp_ray.training.engine_trial import EngineTrial, Measurements
from dp_ray.training.estimate import available_memory, memory_estimate, planned_microbatch_size

_SEARCH_PAYS_S = 20.0
"""A shorter run is over before looking for better than the default has paid for itself."""

_COMPILE_PAYS_S, _COMPILE_BOTH_PAYS_S = 300.0, 1800.0
"""Compiling takes up to a minute for each engine."""

_COMPILED: dict[EngineName, EngineName] = {
    "vmap": "vmap_compiled",
    "per_layer": "per_layer_compiled",
}


def _choose_here(
    config: Config, facts: DataFacts, model: nn.Module, steps: int, measure: Measurements
) -> Choice:
    """On this machine. Raises nothing: the other workers wait for the answer."""
    try:
        choice = choose(config, facts, model, steps=steps, measure=measure)
    except Exception as error:  # of the network at an untried size, say
        note = f"no engine could be chosen: {in_one_line(error)}"
        return Choice("vmap", config.train.microbatch_size or 1, note=note)
    reasons = [
        f"{name} cannot be used: {why}"
        for name, why in measure.failures.items()
        if name != choice.engine
    ]
    return replace(choice, note="; ".join(reasons))


Measure = Callable[[EngineName, int], float]
"""Seconds of one microbatch by an engine at size B; infinity if the engine cannot be used."""


@dataclass(frozen=True)
class Choice:
    """How microbatches are computed.

    Attributes:
        engine: see :class:`~dp_ray.privacy.engines.Engine`.
        microbatch_size: B.
        seconds: measured time of one microbatch; None if it was not measured.
        note: why it is not what one would expect; empty if it is.
    """

    engine: EngineName
    microbatch_size: int
    seconds: float | None = None
    note: str = ""

    def dump(self) -> dict[str, Any]:
        """Plain values, and one line that says them."""
        line = f"engine {self.engine}, {self.microbatch_size} examples a microbatch"
        if self.seconds is not None:
            line += f" of {self.seconds:.2g} s"
        return {**asdict(self), "line": f"{line}; {self.note}" if self.note else line}


def agree_on_engine(
    config: Config,
    facts: DataFacts,
    model: nn.Module,
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
        steps: T; looking for a better choice must pay within the run.
        collective: the workers.
        device: where this worker computes.

    Returns:
        The choice (note and seconds on rank 0 only) and the engine, compiled if it is of that kind.
        Where one worker cannot use it, all use the fastest that all can, and the note says why.
    """
    trial, choice = EngineTrial(config, facts, model, device), Choice("vmap", 1)
    measure = Measurements(config, trial)
    if collective.rank == 0:
        choice = _choose_here(config, facts, model, steps, measure)
    names: tuple[EngineName, ...] = get_args(EngineName)
    refused: list[EngineName] = []
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


def _next_best(refused: list[EngineName], size: int, measure: Measurements) -> EngineName:
    """The fastest of the others that need no compiling, or are compiled already."""
    left: list[EngineName] = [
        name
        for name in get_args(EngineName)
        if name not in refused and (name in _COMPILED or measure.knows(name, size))
    ]
    seconds = {name: measure(name, size) for name in left}
    best: EngineName = "vmap"
    for name in left:
        if seconds[name] < seconds.get(best, math.inf):
            best = name
    return best


def choose(
    config: Config, facts: DataFacts, model: nn.Module, *, steps: int, measure: Measure
) -> Choice:
    """The fastest engine and microbatch size of those worth trying; a function of ``measure``.

    A draw of n examples takes about n/B + 1/2 microbatches, because the last one is padded.
    """
    share = config.data.expected_batch_size / max(config.cluster.max_workers, 1)
    wanted, given = config.train.engine, config.train.microbatch_size
    start = planned_microbatch_size(config, facts, model)
    if wanted != "auto" and given is not None:
        return Choice(wanted, given)

    def step_seconds(name: EngineName, size: int) -> float:
        return measure(name, size) * (share / size + 0.5)

    # Sizes are compared uncompiled: each would have to be compiled anew.
    plain: EngineName = "per_layer" if wanted.startswith("per_layer") else "vmap"
    run_seconds = steps * step_seconds(plain, start)
    if run_seconds < _SEARCH_PAYS_S:
        return Choice(plain if wanted == "auto" else wanted, start)
    if wanted == "auto":
        plain = min(_COMPILED, key=lambda name: measure(name, start))
    size = given or _best_size(
        start,
        lambda size: step_seconds(plain, size),
        lambda size: size <= 2 * share and _fits(config, facts, model, size),
    )
    candidates = {wanted} if wanted != "auto" else {plain}
    if wanted == "auto" and run_seconds > _COMPILE_PAYS_S:
        candidates.add(_COMPILED[plain])
    if wanted == "auto" and run_seconds > _COMPILE_BOTH_PAYS_S:
        candidates.update(_COMPILED.values())
    best = min(sorted(candidates), key=lambda name: measure(name, size))
    seconds = measure(best, size)
    return Choice(best, size, seconds if seconds < math.inf else None)


def _fits(config: Config, facts: DataFacts, model: nn.Module, size: int) -> bool:
    """With room to spare: the estimate is good within a factor of two."""
    return memory_estimate(config, facts, model, size) <= available_memory(config) / 2


def _best_size(start: int, seconds: Callable[[int], float], fits: Callable[[int], bool]) -> int:
    """Doubles B, or else halves it, as long as steps get faster by more than noise."""
    best = start
    while fits(2 * best) and seconds(2 * best) < 0.97 * seconds(best):
        best *= 2
    if best == start:
        while best > 1 and seconds(best // 2) < 0.97 * seconds(best):
            best //= 2
    return best
