"""``dp_ray.audit``: one audit from its configuration to its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from dp_ray.api.checks import check_cluster
from dp_ray.api.dispatch import Dispatcher
from dp_ray.api.objects import AnyObjective, Data, Model, Objects
from dp_ray.api.train import run_training
from dp_ray.artifacts.result import Ending
from dp_ray.artifacts.result_directory import refuse_changes
from dp_ray.artifacts.run_directory import RunDirectory, deciding_fields
from dp_ray.auditing.canaries import Canaries, CanaryKind
from dp_ray.auditing.directory import AuditDirectory, AuditOutcome, AuditSettings
from dp_ray.auditing.planted import supports
from dp_ray.auditing.probe import CanaryProbe
from dp_ray.auditing.report import describe_start
from dp_ray.auditing.verdict import judge
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.errors import ConfigError
from dp_ray.keys import RunKey
from dp_ray.objectives.registry import build_objective
from dp_ray.on_ray.early import EarlyRay
from dp_ray.privacy.plan import PrivacyPlan, with_budget
from dp_ray.reporting.callbacks import Callback
from dp_ray.training.preparation import make_plan

MOST_CANARIES = 4000
"""By default. More show more."""

WARNING = (
    "Computed from the private data by a run with canaries in it: no ε that is stated elsewhere "
    "covers these numbers, and the models of this audit must not be published."
)


def audit(
    config: Config,
    *,
    model: Model | None = None,
    data: Data | None = None,
    objective: AnyObjective | None = None,
    callbacks: Sequence[Callback] = (),
    kind: CanaryKind = "gradient",
    canaries: int | None = None,
    significance: float = 0.05,
    runs: int = 1,
    resume: bool = False,
    break_lock: bool = False,
) -> AuditOutcome | Ending:
    """Attack a training run, and hold what that shows against the ε that it claims.

    Canaries take the place of examples, each by a fair coin, and the attack sees every release. It
    trains on the data: all that it leaves in ``<train.storage_path>/<name>`` must stay secret.

    Args:
        config: what to audit; its name is the audit's.
        model: see :func:`dp_ray.train`, as for ``data``, ``objective`` and ``callbacks``.
        data: likewise.
        objective: likewise.
        callbacks: likewise; they follow each run of the audit.
        kind: ``gradient``, ``sample`` or another kind of canaries.
        canaries: m; by default half of the examples, 4000 at most.
        significance: probability that the bound may be wrong.
        runs: 1; or more, with one canary, which every other run has.
        resume: continue an audit that was stopped or that crashed, as it was started.
        break_lock: with ``resume``, take a run over from a process that is known to be dead.

    Returns:
        The verdict, with ``refuted`` and ``epsilon_lower``; an ending whose ``status`` is
        ``stopped`` if the audit can be resumed.

    Raises:
        DpRayError: before anything is started where possible; see the message.
    """
    return run_audit(
        Objects(model, data, objective).put_into(config),
        kind=kind,
        canaries=canaries,
        significance=significance,
        runs=runs,
        resume=resume,
        break_lock=break_lock,
        callbacks=callbacks,
    )


def run_audit(
    config: Config,
    *,
    kind: CanaryKind = "gradient",
    canaries: int | None = None,
    significance: float = 0.05,
    runs: int = 1,
    resume: bool = False,
    break_lock: bool = False,
    replay: RunKey | None = None,
    callbacks: Sequence[Callback] = (),
) -> AuditOutcome | Ending:
    """Train with canaries, attack, and hold what the attack shows against the ledger's ε.

    Args:
        config: what to audit; its name is the audit's.
        kind: of the canaries.
        canaries: m; by default half of the examples, 4000 at most.
        significance: probability that the bound may be wrong.
        runs: 1; or more, with one canary, which every other run has.
        resume: go on with an audit that was stopped or that crashed, as it was started.
        break_lock: with ``resume``, take a run over from a process that is known to be gone.
        replay: the key of another audit, to repeat its draws, coins and noise.
        callbacks: what follows its runs.

    Returns:
        What outcome.json holds; an :class:`Ending` whose ``status`` is ``stopped`` if the audit
        can be resumed.

    Raises:
        DpRayError: before anything is started where possible; see the message.
    """
    cluster = check_cluster(config)
    directory = AuditDirectory.of(config)
    _check_objective(config)
    settings = _settings(config, kind, canaries, significance, runs)
    if resume:
        _check_same(directory.begun(), (config, settings))
        directory.check_private()
    else:
        directory.check_free()
    plan = make_plan(config)
    _check_claim(plan)
    if not resume:
        directory.create(config, settings, replay=replay)
    config = with_budget(config, plan)  # solved once for all runs
    with Dispatcher(callbacks) as dispatcher:
        dispatcher.message(describe_start(settings, str(directory.root)))
    dispatcher.check(finished=False)
    # One Ray for all of the runs, if it is our own.
    with EarlyRay(cluster) as early:
        early.wait()
        for number in range(settings.runs):
            if not _train(directory, config, settings, number, callbacks, break_lock=break_lock):
                return Ending(name=config.name, path=str(directory.root), status="stopped")
    numbers = range(settings.runs)
    verdict = judge(
        settings,
        [RunDirectory.of(directory.run_config(config, number)) for number in numbers],
        [_draw(directory, config, settings, number).included for number in numbers],
    )
    outcome = AuditOutcome(
        name=config.name,
        path=str(directory.root),
        status="finished",
        **asdict(settings),
        **verdict.model_dump(),
        accountant=config.privacy.accountant,
        warning=WARNING,
    )
    directory.write_outcome(outcome)
    return outcome


def _check_objective(config: Config) -> None:
    num_classes = data_facts(config.data).num_classes
    if not supports(build_objective(config.objective, num_classes), num_classes):
        raise ConfigError(
            "objective.name",
            config.objective.name,
            "an audit marks its canaries by their labels, so labels must be class indices and "
            "outputs rows",
            "Audit a configuration with such an objective, single_label for example",
        )


def _settings(
    config: Config, kind: CanaryKind, canaries: int | None, significance: float, runs: int
) -> AuditSettings:
    examples = data_facts(config.data).num_examples
    if not 0 < significance < 0.5:
        raise ConfigError(
            "--significance", significance, "not between 0 and 1/2", "Leave it out for 0.05"
        )
    if runs < 1:
        raise ConfigError("--runs", runs, "not a number of runs", "Leave it out for 1")
    if runs > 1 and canaries not in (None, 1):
        raise ConfigError(
            "--canaries",
            canaries,
            f"of {runs} runs each is told by one canary",
            "Leave out --canaries, or --runs",
        )
    count = canaries
    if count is None:
        count = 1 if runs > 1 else min(max(examples // 2, 1), MOST_CANARIES)
    if not 1 <= count <= examples:
        raise ConfigError(
            "--canaries",
            count,
            f"they take the place of examples, and there are {examples:,}",
            f"Give a number from 1 to {examples}",
        )
    return AuditSettings(kind, count, significance, runs)


def _check_claim(plan: PrivacyPlan) -> None:
    if plan.noise_multiplier == 0:
        raise ConfigError(
            "privacy.noise_multiplier",
            0,
            "a run without noise claims no ε, so there is nothing to hold against",
            "Give it noise, or a privacy.epsilon",
        )


def _check_same(started: tuple[Config, AuditSettings], now: tuple[Config, AuditSettings]) -> None:
    """An audit that changes as it goes on would have seen scores before it was decided on."""
    old, new = (
        {**deciding_fields(config), "seed": config.seed, **_options(settings)}
        for config, settings in (started, now)
    )
    refuse_changes(old, new, "audit")


def _options(settings: AuditSettings) -> dict[str, Any]:
    return {f"--{name}": value for name, value in asdict(settings).items()}


def _train(
    directory: AuditDirectory,
    config: Config,
    settings: AuditSettings,
    number: int,
    callbacks: Sequence[Callback],
    *,
    break_lock: bool,
) -> bool:
    """False if the run was stopped."""
    config = directory.run_config(config, number)
    run = RunDirectory.of(config)
    if run.finished():
        return True
    if run.exists() and run.is_incomplete():
        run.root.delete("private")  # cut off while it was laid out: nothing was charged
    begun = run.exists()
    result = run_training(
        config,
        resume=begun,
        break_lock=begun and break_lock,
        accept_charges=math.inf,  # a step that is drawn again counts once in an audit
        replay=None if begun else directory.replay_of(f"run {number}"),
        callbacks=callbacks,
        probe=CanaryProbe(_draw(directory, config, settings, number)),
    )
    return result.status == "finished"


def _draw(
    directory: AuditDirectory, config: Config, settings: AuditSettings, number: int
) -> Canaries:
    examples = data_facts(config.data).num_examples
    drawn = Canaries.draw(
        settings.kind, settings.canaries, examples, key=directory.key(), run=number
    )
    if settings.runs == 1:
        return drawn
    # With and without are two samples whose sizes are fixed: no coin is needed.
    return replace(drawn, included=np.array([number % 2 == 0]))
