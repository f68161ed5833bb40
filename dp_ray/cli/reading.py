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
    OwnCode,
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
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what has to be timed: seconds less.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Solve the budget and estimate time and memory. Reads no data.

    Of privacy.epsilon, privacy.noise_multiplier and privacy.steps two are given; the third is
    printed here, with the ε curve over the steps.
    """
    import dp_ray

    counts = _worker_counts(workers or [])
    if quick and counts:
        raise typer.BadParameter("--workers predicts from the timing that --quick leaves out")
    for option, value in (("--latency-us", latency_us), ("--bandwidth-gbit", bandwidth_gbit)):
        if not 0 < value < math.inf:
            raise typer.BadParameter(f"{option} {value}: a finite number above 0 is needed")
    loaded = dp_ray.load_config(config, overrides or ())
    found = dp_ray.plan(  # imports torch, which takes seconds
        loaded,
        quick=quick,
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
    from dp_ray.api.checks import check_look

    loaded = dp_ray.load_config(config, overrides or (), name=name)
    check_look(loaded)
    from dp_ray.api.data import look_at_data  # imports torch, which takes seconds

    facts = look_at_data(loaded, out, print_text)
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
    scores: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write label, prediction, confidence and loss of each test example, as .csv: a "
            "name by itself goes into the run's private part, and nothing into a release.",
        ),
    ] = None,
    own_code: OwnCode = False,
    as_json: Json = False,
) -> None:
    """Evaluate a released model on the test split.

    Prints accuracy in all and for each class, with 95% intervals, the calibration error and the
    largest confusions. Draws the confusion matrix and, into the run's private part, test images
    with prediction and truth. Warns of a model that predicts one class only or never predicts one,
    or that is no better than the most frequent class.
    """
    import dp_ray
    from dp_ray.api.checks import check_run_exists
    from dp_ray.extras import missing

    check_run_exists(run)
    # These import torch, which takes seconds.
    from dp_ray.artifacts.run_directory import RunDirectory
    from dp_ray.reporting.confusion import picture_file, save_confusion
    from dp_ray.reporting.prediction_sheet import COLUMNS, PICTURE, draw_predictions
    from dp_ray.reporting.scores import scores_file, scores_table
    from dp_ray.storage import open_folder

    file = picture_file(run, picture)
    table = None if scores is None else scores_file(run, scores)
    found = dp_ray.evaluate(run, overrides or (), own_code=own_code)
    result = found.facts
    print_text(str(found))
    if table is not None:
        result["scores"] = table.write(scores_table(found.examples, result["class_names"]))
        print_text(f"scores        {result['scores']} (private: of single test examples)")
    if "confusion_matrix" in result and missing("report"):
        print_text("picture       none: matplotlib is not installed; pip install 'dp-ray[report]'")
    elif "confusion_matrix" in result:
        result["picture"] = save_confusion(result, file)
        print_text(f"picture       {result['picture']}")
        directory = RunDirectory(open_folder(run))
        if directory.exists() and found.examples.keys() >= COLUMNS:
            directory.check_private()
            drawn = draw_predictions(found.test, found.examples, result["class_names"])
            directory.private.write(PICTURE, drawn)
            print_text(f"examples      {directory.private / PICTURE} (private: test images)")
    elif picture is not None:
        print_text(f"picture       none: {result['objective']} has no confusion matrix")
    print_json(result, as_json)


def predict(
    run: Annotated[str, typer.Argument(help="A run, such as runs/digits, or its release folder.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE…", help="Image files, or folders of them.")
    ],
    csv: Annotated[
        str | None, typer.Option("--csv", metavar="FILE", help="Write all probabilities as .csv.")
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all probabilities as .json.")
    ] = None,
    own_code: OwnCode = False,
) -> None:
    """Predict the classes of images with a released model.

    Images are decoded, resized and normalised as in training. Prints the class of each image with
    its probability, and the next likely class. Files that are no images are named, and nothing is
    predicted.
    """
    from dp_ray.api.checks import check_run_exists

    check_run_exists(run)
    # These import torch, which takes seconds.
    from dp_ray.api.predict import predict as predict_images
    from dp_ray.reporting.output import OutputFile
    from dp_ray.reporting.predictions import (
        describe_predictions,
        predictions_csv,
        predictions_json,
    )

    given = [(csv, "--csv", ".csv"), (json, "--json", ".json")]
    files = [
        None if place is None else OutputFile.given(place, option, (ending,)).check_unpublished()
        for place, option, ending in given
    ]
    found = predict_images(run, images, own_code=own_code)
    names = found.class_names
    print_text(describe_predictions(found, names, found.skipped))
    if files[0] is not None:
        print_text(f"written       {files[0].write(predictions_csv(found, names))}")
    if files[1] is not None:
        content = predictions_json(found, names, found.skipped)
        print_text(f"written       {files[1].write(content)}")


def export(
    run: Annotated[str, typer.Argument(help="A run, such as runs/digits, or its release folder.")],
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where to: .pt2. Default model.pt2 in the run's folder; of a release folder, "
            "which stays as it is, in the current one.",
        ),
    ] = None,
    own_code: OwnCode = False,
    as_json: Json = False,
) -> None:
    """Save a released model as a program that torch alone runs: uint8 pixels to logits.

    torch.export.load(FILE).module() takes pixels [n, C, S, S]; the normalisation is part of it.
    """
    from dp_ray.api.checks import check_run_exists

    check_run_exists(run)
    from dp_ray.api.export import export as export_model  # imports torch, which takes seconds

    result = {"exported": export_model(run, output, own_code=own_code)}
    print_text(f"exported      {result['exported']}")
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
    own_code: OwnCode = False,
    as_json: Json = False,
) -> None:
    """Verify a run's ledger and show what was spent: steps, repeats, ε by each accountant."""
    import dp_ray
    from dp_ray.api.checks import check_run_exists

    check_run_exists(run)

    opened = dp_ray.open_run(run)
    if repair:
        opened.repair_ledger(own_code=own_code)
    found = opened.ledger(own_code=own_code)
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
    own_code: OwnCode = False,
    as_json: Json = False,
) -> None:
    """Write one page about a run or a search: the privacy statement in plain words, then figures.

    The page is one file, without scripts, and loads nothing.
    """
    import dp_ray
    from dp_ray.api.checks import check_run_exists

    check_run_exists(location)
    written = dp_ray.report(
        location, public=public, form=form.value, output=output, own_code=own_code
    )
    print_text(f"report        {written.path}")
    kept = "it holds nothing private" if written.public else "not to be published: see --public"
    print_text(f"publish       {kept}")
    print_json({"report": written.path, "public": written.public}, as_json)


def config(
    file: Annotated[
        Path | None,
        typer.Argument(help="Show the values of this file, or of a built-in configuration."),
    ] = None,
    overrides: Overrides = None,
    names: Annotated[
        bool, typer.Option("--list", help="Print the names of the built-in configurations.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print every field with its meaning, and its default or a file's value."""
    import dp_ray
    from dp_ray.config.builtin import describe_builtins
    from dp_ray.reporting.fields import describe_config, field_reference

    if names:
        if file is not None or overrides:
            raise typer.BadParameter("--list takes no file and no --set")
        found = describe_builtins()
        width = max(map(len, found))
        print_text("\n".join(f"{name:{width}}  {line}" for name, line in found.items()))
        print_json(found, as_json)
        return
    if file is None and overrides:
        raise typer.BadParameter("--set changes a file's values: name the file")
    loaded = None if file is None else dp_ray.load_config(file, overrides or ())
    print_text(describe_config(loaded))
    print_json(field_reference() if loaded is None else loaded.dump(), as_json)
