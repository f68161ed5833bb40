"""The commands; each hands over to the part that does the work."""

from __future__ import annotations

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dp_ray.errors import DpRayError
from dp_ray.json_text import write_json

app = typer.Typer(
    help="Differentially private training of image classifiers on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

REFUTED = 1
"""Exit code of an audit that refutes what a run claims."""

STOPPED = 130
"""Exit code of a run that was stopped by the user and can be resumed."""

ConfigFile = Annotated[
    Path, typer.Argument(help="A YAML configuration, such as configs/digits.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Overrides a field; may be repeated."),
]
Name = Annotated[
    str | None, typer.Option(help="Name of the run; default the configuration file's name.")
]
BreakLock = Annotated[
    bool,
    typer.Option(
        "--break-lock",
        help="With --resume: take what is resumed over from a process that is known to be gone.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    workers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="W,W,…",
            help="Predict the time of a step with so many workers, such as 1,8,64.",
        ),
    ] = None,
    latency_us: Annotated[
        float, typer.Option(help="With --workers: microseconds of a message in their network.")
    ] = 50.0,
    bandwidth_gbit: Annotated[
        float, typer.Option(help="With --workers: Gbit/s of a worker's network link.")
    ] = 10.0,
    as_json: Json = False,
) -> None:
    """Solve the budget and estimate time and memory. Reads no data.

    Of privacy.epsilon, privacy.noise_multiplier and privacy.steps two are given; the third is
    printed here, with the ε curve over the steps.
    """
    from dp_ray.config.files import load_config
    from dp_ray.reporting.plan import describe_plan, plan_facts
    from dp_ray.reporting.scaling import describe_scaling, scaling_facts

    counts = _worker_counts(workers or [])
    for option, value in (("--latency-us", latency_us), ("--bandwidth-gbit", bandwidth_gbit)):
        if not 0 < value < math.inf:
            raise typer.BadParameter(f"{option} {value}: a finite number above 0 is needed")
    facts = plan_facts(load_config(config, overrides or ()))
    _print(describe_plan(facts))
    if counts:
        facts["scaling"] = scaling_facts(
            facts, counts, latency_us=latency_us, bandwidth_gbit=bandwidth_gbit
        )
        _print("\n" + describe_scaling(facts["scaling"]))
    _print_json(facts, as_json)


@app.command()
def data(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the report and the contact sheet go, for their owner's eyes alone; default "
            "<train.storage_path>/<name>-data.",
        ),
    ] = None,
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Look at the data as a run would read it: what was read, what was skipped, and examples.

    Draws a contact sheet: examples of each class, and their K views. Trains nothing and costs no
    privacy budget. What it prints and draws shows private data, and must not be published.
    """
    from dp_ray.api.data import look_at_data
    from dp_ray.config.files import load_config

    facts = look_at_data(load_config(config, overrides or (), name=name), out, _print)
    _print_json(facts, as_json)


def _worker_counts(given: list[str]) -> list[int]:
    """``["1,2", "8"]`` as numbers, ascending, each once."""
    counts = set()
    for part in ",".join(given).split(",") if given else []:
        try:
            number = int(part)
        except ValueError:
            number = 0
        if not 1 <= number <= 10**6:
            raise typer.BadParameter(
                f"--workers {','.join(given)}: {part.strip() or 'nothing'} is not a whole number "
                "from 1 to a million; write --workers 1,8,64"
            )
        counts.add(number)
    return sorted(counts)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Name = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped or that crashed.")
    ] = False,
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
    from dp_ray.api.train import run_training
    from dp_ray.artifacts.run_key import read_replay_key
    from dp_ray.config.files import load_config
    from dp_ray.reporting.summary import describe_result

    loaded = load_config(config, overrides or (), name=name)
    _check_break_lock(break_lock, resume)
    if resume and replay_key is not None:
        raise typer.BadParameter(
            "--replay-key starts a run; --resume goes on with the run's own key"
        )
    result = run_training(
        loaded,
        resume=resume,
        break_lock=break_lock,
        profile=profile,
        replay=None if replay_key is None else read_replay_key(replay_key, loaded.seed),
        console=Console(stderr=True),
    )
    _print(describe_result(result))
    _print_json(result.dump(), as_json)
    if result.status == "stopped":
        raise typer.Exit(STOPPED)


@app.command()
def tune(
    config: Annotated[
        Path, typer.Argument(help="A YAML search, such as configs/sweeps/digits.yaml.")
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
    from dp_ray.api.tune import plan_sweep, run_sweep
    from dp_ray.config.search import load_sweep
    from dp_ray.reporting.search import describe_search, describe_sweep_result, search_facts
    from dp_ray.search.cost import search_cost

    loaded, console = load_sweep(config, overrides or (), name=name), Console(stderr=True)
    if dry_run:
        search, _ = plan_sweep(loaded, console)
        cost = search_cost(search)
        _print(describe_search(search, cost))
        _print_json(search_facts(search, cost), as_json)
        return
    _check_break_lock(break_lock, resume)
    result = run_sweep(loaded, resume=resume, break_lock=break_lock, console=console)
    _print(describe_sweep_result(result))
    _print_json(result.dump(), as_json)
    if result.status == "stopped":
        raise typer.Exit(STOPPED)


class CanaryForm(StrEnum):
    """Of canaries."""

    GRADIENT = "gradient"
    MISLABELLED = "mislabelled"


_TOLD_IN_A_JOB = ("name", "path", "status", "refuted", "can_refute")
"""Of an audit's outcome; the rest has figures of the data, and others may read a job's log."""


@app.command()
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
    from dp_ray.api.audit import run_audit
    from dp_ray.auditing.report import describe_audit, describe_verdict
    from dp_ray.config.files import load_config
    from dp_ray.on_ray.job import in_job

    _check_break_lock(break_lock, resume)
    outcome = run_audit(
        load_config(config, overrides or (), name=name or f"{config.stem}-audit"),
        kind=kind.value,
        canaries=canaries,
        significance=significance,
        runs=runs,
        resume=resume,
        break_lock=break_lock,
        console=Console(stderr=True),
    )
    values = outcome.dump()
    if in_job():
        _print(describe_verdict(outcome))
        values = {name: values[name] for name in _TOLD_IN_A_JOB if name in values}
    else:
        _print(describe_audit(outcome))
    _print_json(values, as_json)
    if outcome.status == "stopped":
        raise typer.Exit(STOPPED)
    if values.get("refuted"):
        raise typer.Exit(REFUTED)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A run, such as runs/digits, or its release folder.")],
    overrides: Overrides = None,
    picture: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where the confusion matrix is drawn: .png, .svg or .pdf. Default confusion.png "
            "in the run's folder; for a release folder, which stays as it is, in the current one.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a released model on the test split.

    Prints accuracy in all and for each class, with 95% intervals, the calibration error and the
    largest confusions, and draws the confusion matrix.
    """
    from dp_ray.reporting.confusion import picture_file, save_confusion
    from dp_ray.reporting.evaluation import describe_evaluation
    from dp_ray.training.evaluate_run import evaluate_run

    file = picture_file(run, picture)
    result = evaluate_run(run, overrides or [])
    _print(describe_evaluation(result))
    result["picture"] = save_confusion(result, file)
    _print(f"picture       {result['picture']}")
    _print_json(result, as_json)


@app.command()
def ledger(
    run: Annotated[str, typer.Argument(help="A run, such as runs/digits.")],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Go on without records that a power cut took from the end: charges for what they "
            "may have held.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify a run's ledger and show what was spent: steps, repeats, ε by each accountant."""
    from dp_ray.reporting.ledger import describe_ledger, ledger_facts, repair_ledger

    if repair:
        repair_ledger(run)
    facts = ledger_facts(run)
    _print(describe_ledger(facts))
    _print_json(facts, as_json)


class ReportFormat(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MARKDOWN = "markdown"


@app.command()
def report(
    location: Annotated[
        str,
        typer.Argument(
            metavar="RUN|SWEEP",
            help="A run or a search, such as runs/digits, or a release folder by itself.",
        ),
    ],
    public: Annotated[
        bool,
        typer.Option("--public", help="Leave out what is private: a page that may be published."),
    ] = False,
    form: Annotated[
        ReportFormat,
        typer.Option("--format", help="A page, or a model card, which is always public."),
    ] = ReportFormat.HTML,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where to: .html or .md. Default report.html in the private part, or with "
            "--public privacy-report.html (model-card.md) beside it; of a release folder, which "
            "stays as it is, in the current one.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one page about a run or a search: the privacy statement in plain words, then figures.

    The page is one file, without scripts, and loads nothing.
    """
    from dp_ray.reporting.make import write_report

    result = write_report(location, public=public, form=form.value, output=output)
    _print(f"report        {result['report']}")
    kept = "it holds nothing private" if result["public"] else "not to be published: see --public"
    _print(f"publish       {kept}")
    _print_json(result, as_json)


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(help="Show this file's values.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Print every field with its meaning, and its default or a file's value."""
    from dp_ray.config.files import load_config
    from dp_ray.reporting.fields import describe_config, field_reference

    if file is None and overrides:
        raise typer.BadParameter("--set changes a file's values: name the file")
    loaded = None if file is None else load_config(file, overrides or ())
    _print(describe_config(loaded))
    _print_json(field_reference() if loaded is None else loaded.dump(), as_json)


def _print(text: str) -> None:
    typer.echo(text)


def _check_break_lock(break_lock: bool, resume: bool) -> None:
    if break_lock and not resume:
        raise typer.BadParameter("--break-lock goes with --resume")


def _print_json(value: dict[str, Any], wanted: bool) -> None:
    if wanted:
        typer.echo(write_json(value))


def _in_one_line(text: str) -> str:
    """Without line breaks, and without what would steer a terminal, as a file's name could."""
    line = " ".join(part.strip() for part in text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def main() -> None:
    """The console script: a user's mistake ends in one message and exit code 2."""
    try:
        app(prog_name="dp-ray")
    except DpRayError as error:
        from dp_ray.on_ray.job import message_of

        text = _in_one_line(f"dp-ray: {message_of(error)}")
        Console(stderr=True).print(text, style="bold", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
