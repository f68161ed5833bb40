"""Going on with a run: as what it was started, on how it was executed, with more steps at most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dp_ray.artifacts.result import Result
from dp_ray.artifacts.result_directory import refuse_changes
from dp_ray.artifacts.run_directory import RunDirectory, deciding_fields, declarations
from dp_ray.artifacts.run_key import refuse_key_of_seed
from dp_ray.config.run import Config
from dp_ray.errors import ConfigError, LedgerError, RunError
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger
from dp_ray.privacy.accounting import BudgetError, solve_steps
from dp_ray.privacy.mechanism import Mechanism, check_description, mechanism_of
from dp_ray.privacy.plan import PrivacyPlan, check_countable
from dp_ray.training.optimizers import depends_on_length

SEARCHED = "privacy.search_epsilon"
_BUDGET = ("privacy.epsilon", "privacy.noise_multiplier", "privacy.steps")


@dataclass(frozen=True)
class Resumption:
    """What a run goes on as.

    Attributes:
        config: as given, with the execution of the sessions before where it leaves that open.
        before: the plan that the run is held to so far.
        plan: the plan from here on: ``before`` itself, or with a larger T and ε.
        declared: what the user declared before, by field.
    """

    config: Config
    before: PrivacyPlan
    plan: PrivacyPlan
    declared: dict[str, Any]

    @property
    def adds_steps(self) -> bool:
        """Whether more steps were asked for."""
        return self.plan.steps > self.before.steps

    @property
    def redeclared(self) -> list[str]:
        """What the user declares otherwise than before, a line for each."""
        return [
            f"{field}: {_plain(new)} from here on, and {_plain(self.declared[field])} before; both "
            "are on record"
            for field, new in declarations(self.config).items()
            if new != self.declared[field]
        ]


def plan_resumption(run: RunDirectory, ledger: Ledger, config: Config) -> Resumption:
    """Checks that a run can go on under a configuration; changes nothing.

    Args:
        run: which one.
        ledger: its ledger.
        config: as the user gives it now.

    Raises:
        RunError: the run is finished, or its files are damaged.
        LedgerError: the ledger is an older copy.
        ConfigError: a field that decides the mathematics differs from the run's own.
    """
    ledger.check_version()
    started, before = run.config(), ledger.plan
    _check_fields(started, config)
    declared = ledger.declared or declarations(started)
    _check_declared(declared, config)
    plan = before
    if any(_value(started, field) != _value(config, field) for field in _BUDGET):
        plan = _raise_steps(config, before, amended=ledger.amended)
    if run.finished() and plan.steps <= before.steps:
        raise RunError(run.taken())
    _check_result(run, ledger)
    _check_key(run, started)
    _check_covered(config, plan, ledger)
    if ledger.sessions:
        config = _keep_execution(config, ledger.sessions[-1].execution)
    return Resumption(config, before, plan, declared)


def _check_declared(before: dict[str, Any], config: Config) -> None:
    """Refuse to leave a search out of the statement that was in it."""
    old, new = before[SEARCHED], config.privacy.search_epsilon
    if old is not None and (new is None or new < old):
        raise ConfigError(
            SEARCHED,
            new,
            f"the run declares {old}, and what a search has spent stays spent",
            f"Set it to {old}, or more",
        )


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)


def _check_result(run: RunDirectory, ledger: Ledger) -> None:
    """What the run said of itself must not be more than its ledger knows."""
    result = Result.find(run.root)
    if result is not None and result.charges > ledger.charges:
        raise LedgerError(
            f"{run.root}/{Result.FILE} tells of {result.charges} noised sums and the ledger of "
            f"{ledger.charges}: "
            "private/ is an older copy, and going on from it could add equal noise to two sums. "
            "Restore the newest, or start a new run with another --name"
        )


def _check_key(run: RunDirectory, started: Config) -> None:
    """Refuse to publish a seed from which the run's draws and noise follow."""
    if started.seed is not None and not run.is_replay():
        refuse_key_of_seed(run.key(), started.seed)


def _check_covered(config: Config, plan: PrivacyPlan, ledger: Ledger) -> None:
    """Refuse a plan that does not cover what was charged, which a repair alone can bring about.

    Nothing more could be drawn, and ``config.yaml`` of a release would allow less than was spent.
    """
    if mechanism_of(plan).covers(ledger.charged):
        return
    cost = plan.with_steps(ledger.charges).epsilon
    wanted = {"privacy.steps": ledger.charges, "privacy.epsilon": _round_up(cost)}
    more = [f"{f} to {value} or more" for f, value in wanted.items() if _value(config, f)]
    remedy = f"Set {' and '.join(more)}: {ledger.charges} noised sums cost ε = {cost:.4f}"
    if _laid_out(config, plan):
        remedy = "Start a new run with another --name; its privacy cost adds to this one's"
    raise ConfigError(
        "privacy.steps",
        plan.steps,
        f"the ledger was repaired, which charged for all that lost records may have held: "
        f"{ledger.charges} noised sums, more than the run's plan covers. Nothing can be released",
        remedy,
    )


def _check_fields(started: Config, now: Config) -> None:
    old = {**deciding_fields(started), "seed": started.seed}
    new = {**deciding_fields(now), "seed": now.seed}
    for field in _BUDGET:
        del old[field], new[field]
    refuse_changes(old, new, "run")


def _raise_steps(config: Config, before: PrivacyPlan, *, amended: bool) -> PrivacyPlan:
    """The plan with the steps that a changed budget asks for, at the run's own noise.

    Args:
        config: its budget differs from the one that the run was started with.
        before: the plan that the run is held to so far.
        amended: whether the run was given more steps before, by a budget that is not on record.

    Raises:
        ConfigError: the budget asks for other noise, for fewer steps, or for no further one.
    """
    privacy = config.privacy
    if privacy.noise_multiplier not in (None, before.noise_multiplier):
        raise ConfigError(
            "privacy.noise_multiplier",
            privacy.noise_multiplier,
            f"the run's noise is {before.noise_multiplier}",
            "Resume it as it was, or start a new run with another --name",
        )
    steps = privacy.steps
    if steps is None:
        steps = _affordable_steps(config, before)
    if steps < before.steps:
        raise ConfigError(
            "privacy.epsilon" if privacy.steps is None else "privacy.steps",
            privacy.epsilon if privacy.steps is None else privacy.steps,
            f"that is {steps} steps, fewer than the run's {before.steps}",
            "A run can be given more steps, not fewer; Ctrl-C stops it at any step",
        )
    # An accountant may differ in the last digit between processes: the same plan stays as it is.
    after = before if steps == before.steps else _longer(before, steps)
    check_countable(after)
    cost = after.epsilon
    if privacy.epsilon is not None and cost > privacy.epsilon:
        raise ConfigError(
            "privacy.epsilon",
            privacy.epsilon,
            f"{steps} steps at the run's σ = {before.noise_multiplier:.4g} cost ε = {cost:.4f}",
            f"To accept that, set privacy.epsilon to {_round_up(cost)} as well",
        )
    if steps == before.steps and privacy.epsilon is not None and not amended:
        raise _changes_nothing(config, before)
    if steps > before.steps and depends_on_length(config.optimizer):
        raise _was_laid_out(f"the schedule {config.optimizer.scheduler}", before, steps)
    return after


def _longer(before: PrivacyPlan, steps: int) -> PrivacyPlan:
    """The plan with more steps, under which those before cost and get what they did.

    Raises:
        ConfigError: the mechanism refuses so many, or lays its noise out by their number.
    """
    longer = mechanism_of(replace(before, steps=steps))
    check_description(longer)
    if not _continues(mechanism_of(before), longer):
        own = f"privacy.mechanism = {before.mechanism}"
        scheduled = len(before.noise_factors) > 1
        raise _was_laid_out(
            "the schedule privacy.noise_schedule" if scheduled else own, before, steps
        )
    return before.with_steps(steps)


def _continues(before: Mechanism, after: Mechanism) -> bool:
    return all(
        (before.cost_at(step), before.noise_at(step)) == (after.cost_at(step), after.noise_at(step))
        for step in range(before.plan.steps)
    )


def _was_laid_out(what: str, before: PrivacyPlan, steps: int) -> ConfigError:
    return ConfigError(
        "privacy.steps",
        steps,
        f"{what} was laid out for {before.steps} steps",
        "Start a new run with another --name; its privacy cost adds to this one's",
    )


def _laid_out(config: Config, plan: PrivacyPlan) -> list[str | None]:
    """Schedules that were laid out for the steps of a plan."""
    found = [config.optimizer.scheduler] if depends_on_length(config.optimizer) else []
    return found + (["privacy.noise_schedule"] if len(plan.noise_factors) > 1 else [])


def _changes_nothing(config: Config, before: PrivacyPlan) -> ConfigError:
    """A larger ε for the same steps: σ was solved when the run was started, and stays."""
    affordable = _affordable_steps(config, before)
    if affordable > before.steps:
        remedy = f"For more steps, set privacy.steps to {affordable} or fewer as well"
    else:
        further = before.with_steps(before.steps + 1).epsilon
        remedy = f"One more step costs ε = {further:.4f}: raise it to {_round_up(further)} or more"
    return ConfigError(
        "privacy.epsilon",
        config.privacy.epsilon,
        f"the run keeps its noise σ = {before.noise_multiplier:.4g}, and its {before.steps} steps "
        f"cost ε = {before.epsilon:.4f} whatever is set here",
        f"{remedy}; or resume the run with the privacy section that it was started with",
    )


def _affordable_steps(config: Config, before: PrivacyPlan) -> int:
    assert config.privacy.epsilon is not None
    try:
        return solve_steps(
            before.accountant,
            before,
            target=config.privacy.epsilon,
            noise_multiplier=before.noise_multiplier,
        )
    except BudgetError as error:
        raise ConfigError(
            "privacy.epsilon", config.privacy.epsilon, str(error), "Resume the run as it was"
        ) from error


def _keep_execution(config: Config, execution: Execution) -> Config:
    """What is left open stays as before: other threads, say, would round sums otherwise."""
    kept: dict[str, dict[str, Any]] = {"cluster": {}, "train": {}}
    if config.cluster.threads_per_worker is None:
        kept["cluster"]["threads_per_worker"] = execution.threads
    if config.train.engine == "auto":
        kept["train"]["engine"] = execution.engine
    if config.train.microbatch_size is None:
        kept["train"]["microbatch_size"] = execution.microbatch_size
    sections = {name: getattr(config, name).model_copy(update=new) for name, new in kept.items()}
    return config.model_copy(update=sections)


def _value(config: Config, field: str) -> Any:
    return deciding_fields(config)[field]


def _round_up(epsilon: float) -> float:
    return int(epsilon * 100 + 1) / 100
