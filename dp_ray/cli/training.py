"""The commands that train: a run, a search, an audit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dp_ray.cli.options import (
    STOPPED,
    AcceptCharges,
    BreakLock,
    ConfigFile,
    Json,
    Name,
    Overrides,
    can_answer,
    check_break_lock,
    print_json,
    print_text,
    terminal_progress,
)
from dp_ray.errors import ChargesError

if TYPE_CHECKING:
    from dp_ray.api.run import Run
    from dp_ray.config.run import Config

REFUTED = 1
"""Exit code of an audit that refutes what a run claims."""


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Name = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped or that crashed.")
    ] = False,
    accept_charges: AcceptCharges = None,
    break_lock: BreakLock = False,
    replay_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Repeat the draws and the noise of a run whose private/run_key this is, for tests "
            "and audits. At most one of the two models may be published.",
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Trace the third step: private/profile gets a trace for Perfetto (or "
            "chrome://tracing) and a table of each worker's time.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model within its privacy budget.

    Results go to <train.storage_path>/<name>: release/ may be published, private/ must not be.

    Ctrl-C stops after the step at hand, with a checkpoint and exit code 130; --resume goes on.
    More privacy.steps (and the privacy.epsilon that they cost) may be given with it.
    """
    import dp_ray

    check_break_lock(break_lock, resume)
    if resume and replay_key is not None:
        raise typer.BadParameter(
            "--replay-key starts a run; --resume continues with the run's own key"
        )
    if accept_charges is not None and not resume:
        raise typer.BadParameter("--accept-charges goes with --resume")
    loaded = _load(config, overrides, name)
    train_it = partial(
        dp_ray.train,  # imports torch, which takes seconds
        loaded,
        callbacks=[terminal_progress()],
        resume=resume,
        break_lock=break_lock,
        profile=profile,
        replay_key=replay_key,
    )
    try:
        run = _ask_for_charges(train_it, accept_charges)
    except KeyboardInterrupt as interrupt:
        from dp_ray.reporting.summary import describe_interruption

        raise KeyboardInterrupt(str(interrupt) or describe_interruption(loaded)) from None
    print_text(str(run))
    print_json(run.result.dump(), as_json)
    if run.status == "stopped":
        raise typer.Exit(STOPPED)


def _ask_for_charges(train_it: Callable[..., Run], accepted: int | None) -> Run:
    """Train; where steps would be charged again, ask whoever is at the terminal."""
    try:
        return train_it(accept_charges=accepted)
    except ChargesError as error:
        if accepted is not None or not (can_answer() and sys.stderr.isatty()):
            raise
        typer.echo(str(error), err=True)
        typer.confirm(f"Charge {error.charges} steps again?", abort=True, err=True)
        return train_it(accept_charges=error.charges)


def _load(config: Path, overrides: list[str] | None, name: str | None) -> Config:
    """Load a configuration, and check what takes moments."""
    from dp_ray.api.checks import check_run
    from dp_ray.config.files import load_config

    loaded = load_config(config, overrides or (), name=name)
    check_run(loaded)
    return loaded


def tune(
    config: Annotated[
        Path,
        typer.Argument(help="A YAML file, or a built-in search by name, such as sweeps/digits."),
    ],
    overrides: Overrides = None,
    name: Name = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a search that was stopped or that crashed.")
    ] = False,
    break_lock: BreakLock = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the search would cost, and start nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search fields of a configuration at an equal privacy budget, and count what it costs.

    The ε of the search heads the output; the best trial's own ε is not the cost.
    Results go to <train.storage_path>/<name>: release/ may be published, private/ must not be.

    Ctrl-C stops with exit code 130; --resume goes on, without running a finished trial again.
    """
    import dp_ray
    from dp_ray.api.checks import check_search

    check_break_lock(break_lock, resume)
    loaded = dp_ray.load_sweep(config, overrides or (), name=name)
    if not dry_run:
        check_search(loaded)
    # These import torch, which takes seconds.
    from dp_ray.api.tune import plan_sweep
    from dp_ray.reporting.search import (
        describe_search,
        describe_search_interruption,
        describe_sweep_result,
        search_facts,
    )
    from dp_ray.search.cost import search_cost

    if dry_run:
        search, _ = plan_sweep(loaded, [terminal_progress()])
        cost = search_cost(search)
        print_text(describe_search(search, cost))
        print_json(search_facts(search, cost), as_json)
        return
    try:
        result = dp_ray.tune(
            loaded, callbacks=[terminal_progress()], resume=resume, break_lock=break_lock
        )
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or describe_search_interruption(loaded)
        raise KeyboardInterrupt(said) from None
    print_text(describe_sweep_result(result))
    print_json(result.dump(), as_json)
    if result.status == "stopped":
        raise typer.Exit(STOPPED)


class CanaryForm(StrEnum):
    """Of canaries."""

    GRADIENT = "gradient"
    MISLABELLED = "mislabelled"


_TOLD_IN_A_JOB = ("name", "path", "status", "refuted", "can_refute")
"""Of an audit's outcome; the rest has figures of the data, and others may read a job's log."""


def audit(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the audit; default the configuration file's name and -audit."),
    ] = None,
    kind: Annotated[
        CanaryForm,
        typer.Option(
            help="gradient: canaries add a gradient of norm C in a direction of their own; "
            "mislabelled: examples with a wrong label."
        ),
    ] = CanaryForm.GRADIENT,
    canaries: Annotated[
        int | None,
        typer.Option(help="How many; default half of the examples, 4000 at most."),
    ] = None,
    significance: Annotated[
        float, typer.Option(help="Probability that the lower bound may be wrong.")
    ] = 0.05,
    runs: Annotated[
        int,
        typer.Option(help="Above 1: so many runs, every other with one canary."),
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an audit that was stopped or that crashed.")
    ] = False,
    break_lock: BreakLock = False,
    as_json: Json = False,
) -> None:
    """Attack a training run, and hold what that shows against the ε that it claims.

    Canaries take the place of examples, each by a fair coin, and the attack sees every release.
    Prints a lower bound on ε beside the claim. Exit code 1 if the claim is refuted.

    It trains on the data: all that it leaves in <train.storage_path>/<name> must stay secret.
    """
    import dp_ray

    check_break_lock(break_lock, resume)
    loaded = _load(config, overrides, name or f"{config.stem}-audit")
    # These import torch, which takes seconds.
    from dp_ray.auditing.report import describe_audit, describe_verdict
    from dp_ray.on_ray.job import in_job

    outcome = dp_ray.audit(
        loaded,
        callbacks=[terminal_progress()],
        kind=kind.value,
        canaries=canaries,
        significance=significance,
        runs=runs,
        resume=resume,
        break_lock=break_lock,
    )
    values = outcome.dump()
    if in_job():
        print_text(describe_verdict(outcome))
        values = {name: values[name] for name in _TOLD_IN_A_JOB if name in values}
    else:
        print_text(describe_audit(outcome))
    print_json(values, as_json)
    if outcome.status == "stopped":
        raise typer.Exit(STOPPED)
    if values.get("refuted"):
        raise typer.Exit(REFUTED)
