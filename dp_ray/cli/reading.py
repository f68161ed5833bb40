"""The commands that train nothing: they plan, look, evaluate and report."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dp_ray.cli.options import (
    ConfigFile,
    Json,
    Name,
    Overrides,
    print_json,
    print_text,
)


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
    import dp_ray

    counts = _worker_counts(workers or [])
    for option, value in (("--latency-us", latency_us), ("--bandwidth-gbit", bandwidth_gbit)):
        if not 0 < value < math.inf:
            raise typer.BadParameter(f"{option} {value}: a finite number above 0 is needed")
    found = dp_ray.plan(
        dp_ray.load_config(config, overrides or ()),
        workers=counts,
        latency_us=latency_us,
        bandwidth_gbit=bandwidth_gbit,
    )
    print_text(str(found))
    print_json(found.facts, as_json)


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
    import dp_ray
    from dp_ray.api.data import look_at_data

    facts = look_at_data(dp_ray.load_config(config, overrides or (), name=name), out, print_text)
    print_json(facts, as_json)


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
    import dp_ray
    from dp_ray.reporting.confusion import picture_file, save_confusion

    file = picture_file(run, picture)
    found = dp_ray.evaluate(run, overrides or ())
    result = found.facts
    print_text(str(found))
    if "confusion_matrix" in result:
        result["picture"] = save_confusion(result, file)
        print_text(f"picture       {result['picture']}")
    elif picture is not None:
        print_text(f"picture       none: {result['objective']} has no confusion matrix")
    print_json(result, as_json)


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
    import dp_ray

    opened = dp_ray.open_run(run)
    if repair:
        opened.repair_ledger()
    found = opened.ledger()
    print_text(str(found))
    print_json(found.facts, as_json)


class ReportFormat(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MARKDOWN = "markdown"


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
    import dp_ray

    written = dp_ray.report(location, public=public, form=form.value, output=output)
    print_text(f"report        {written.path}")
    kept = "it holds nothing private" if written.public else "not to be published: see --public"
    print_text(f"publish       {kept}")
    print_json({"report": written.path, "public": written.public}, as_json)


def config(
    file: Annotated[Path | None, typer.Argument(help="Show this file's values.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Print every field with its meaning, and its default or a file's value."""
    import dp_ray
    from dp_ray.reporting.fields import describe_config, field_reference

    if file is None and overrides:
        raise typer.BadParameter("--set changes a file's values: name the file")
    loaded = None if file is None else dp_ray.load_config(file, overrides or ())
    print_text(describe_config(loaded))
    print_json(field_reference() if loaded is None else loaded.dump(), as_json)
