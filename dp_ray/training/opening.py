"""How a run begins, or continues after a stop or a crash: all that happens before its workers."""

from __future__ import annotations

from collections.abc import Callable

from dp_ray.artifacts.notes import DataNote, EngineNote, PhaseNote, StartNote
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import (
    RAY,
    REFUSED,
    RELEASE,
    STOP,
    RunDirectory,
    declarations,
)
from dp_ray.artifacts.score import published_before
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.data.files import skipped_line
from dp_ray.data.sources.registry import check_place
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import RunError
from dp_ray.keys import RunKey
from dp_ray.ledger.ledger import Ledger
from dp_ray.ledger.lock import OWNER_ENDS_S
from dp_ray.objectives.registry import build_objective
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.training.preparation import check_feasible, make_plan
from dp_ray.training.resume import plan_resumption

_NOTES = (
    STOP,
    REFUSED,
    *(document.FILE for document in (Progress, EngineNote, DataNote, PhaseNote, StartNote)),
)
"""Of one attempt, for whoever watches it."""


def begin(
    run: RunDirectory, config: Config, replay: RunKey | None, tell: Callable[[str], None]
) -> PrivacyPlan:
    """Plan a run and write its directory.

    Args:
        run: where; its name must be free.
        config: what to train.
        replay: the key of another run, to repeat its draws and noise.
        tell: logs one line, for example about skipped files.

    Raises:
        DpRayError: it cannot start; see the message.
    """
    run.check_free()
    if config.cluster.address is None:
        check_place(config.data)  # before the budget is solved, which takes seconds
    plan = make_plan(config)
    try_data(config, tell)
    run.create(config, plan, replay=replay)
    return plan


def take_up(
    run: RunDirectory,
    config: Config,
    attempt: str,
    tell: Callable[[str], None],
    *,
    break_lock: bool = False,
) -> tuple[Config, PrivacyPlan]:
    """Prepares a run that was begun before.

    Args:
        run: which.
        config: as given now.
        attempt: names this call, for the run's lock.
        tell: logs one line about what differs from the run's beginning.
        break_lock: take the run over from a process that is known to be dead.

    Returns:
        What it goes on as.

    Raises:
        DpRayError: it cannot go on; see the message.
    """
    if not run.exists():
        raise RunError(f"{run.root} holds no run to resume: start it without --resume")
    run.check_private()
    # Here too, and not only in the coordinator: a run in use is refused before Ray is started.
    ledger = run.write_ledger(attempt, wait_s=OWNER_ENDS_S, take_over=break_lock)
    try:
        resumption = plan_resumption(run, ledger, config)
        config, before, plan = resumption.config, resumption.before, resumption.plan
        check_feasible(config, plan.steps)
        try_data(config, tell)
        if resumption.adds_steps:
            tell(
                f"privacy.steps: raised from {before.steps} to {plan.steps}, and the run's ε from "
                f"{before.epsilon:.4f} to {plan.epsilon:.4f} at δ = {plan.delta:g}",
            )
        elif ledger.amended:
            tell(
                f"privacy.steps: {plan.steps}, as the run was given since its start; "
                f"ε = {plan.epsilon:.4f} at δ = {plan.delta:g}",
            )
        for change in resumption.redeclared:
            tell(change)
        _mark_running(run, ledger)
        ledger.charge_earlier_scores(published_before(run.root / RELEASE))
        if resumption.redeclared:
            ledger.declare(declarations(config))
        if resumption.adds_steps:
            ledger.amend_plan(plan)
        _clear_notes(run)
    finally:
        ledger.close()
    return config, plan


def _mark_running(run: RunDirectory, ledger: Ledger) -> None:
    """What an earlier attempt said of itself is no longer so."""
    result = Result.find(run.root)
    if result is not None:
        result.running(ledger.charges).write(run.root)


def try_data(config: Config, tell: Callable[[str], None]) -> Dataset | None:
    """Open the data, so that a mistake in it shows before Ray starts.

    Returns:
        The data; None if the workers are on other machines.
    """
    if config.cluster.address is not None:
        return None
    objective = build_objective(config.objective, data_facts(config.data).num_classes)
    dataset = open_dataset(config.data, objective.labels)
    if (line := skipped_line(dataset.skipped)) is not None:
        tell(line)
    return dataset


def _clear_notes(run: RunDirectory) -> None:
    """What an earlier attempt left for whoever watched it."""
    for name in run.private.names():
        if name in _NOTES or name.startswith(f"{RAY}-"):
            run.private.delete(name)
