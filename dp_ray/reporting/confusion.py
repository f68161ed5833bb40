"""A confusion matrix as a picture in one file."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dp_ray.artifacts.run_directory import RELEASE
from dp_ray.extras import require
from dp_ray.objectives.useless import class_label
from dp_ray.reporting.output import OutputFile
from dp_ray.storage import open_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_FORMATS = (".png", ".svg", ".pdf")
_NUMBERED = 20
"""So many classes get a tick each, and a number in each cell; more would be too small to read."""

_LONGEST_NAME = 24
"""Characters of a class's name at a tick."""

_CELLS = 250
"""So many cells a side stay visible; more classes share them."""


def picture_file(run: str, given: str | None) -> OutputFile:
    """The file that was asked for, or ``confusion.png`` in the run's folder.

    A release folder stays as it was published: its picture goes to the current folder.

    Args:
        run: path or URI of a run or of a release folder.
        given: ``--picture``, a path or URI.

    Raises:
        ConfigError: no such kind of picture can be written.
        MissingExtraError: a picture was asked for, and nothing can draw it.
    """
    if given is None:
        folder = open_folder(run)
        place = folder if folder.exists(RELEASE) else open_folder(".")
        return OutputFile(place, "confusion.png", "--picture")
    require("report", f"--picture {given}", "leave it out")
    return OutputFile.given(given, "--picture", _FORMATS)


def save_confusion(result: dict[str, Any], file: OutputFile) -> str:
    """Draws the confusion matrix of an evaluation into a file; returns where it is.

    Raises:
        StorageError: the file cannot be written.
    """
    return file.write(draw_confusion(result, file.name.rpartition(".")[2]))


def draw_confusion(result: dict[str, Any], form: str) -> bytes:
    """The picture: colour is the share of a true class, numbers are examples.

    Args:
        result: figures of a :class:`~dp_ray.training.evaluate_run.ScoredRun`.
        form: ``png``, ``svg`` or ``pdf``.
    """
    require("report", "drawing")
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure  # without pyplot: no screen, no state

    counts = np.array(result["confusion_matrix"])
    totals = counts.sum(axis=1, keepdims=True)
    # A row without a test example has no shares: it stays grey.
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    cells, width = _fewer(shares)
    edge = len(cells) * width - 0.5

    side = np.clip(0.5 * len(counts), 4.0, 9.0)
    figure = Figure(figsize=(side + 1.5, side + 0.7), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class", title=_title(result))
    image = axes.imshow(
        cells,
        extent=(-0.5, edge, edge, -0.5),
        cmap=colormaps["Blues"].with_extremes(bad="#dddddd"),
        norm=PowerNorm(0.4, 0, 1),  # so that rare confusions are seen beside the diagonal
    )
    axes.locator_params(integer=True)
    if len(counts) <= _NUMBERED:
        _number(axes, counts, shares)
        if names := result.get("class_names"):
            _name(axes, names)
    bar = figure.colorbar(image, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], shrink=0.8)
    bar.ax.yaxis.set_major_formatter("{x:.0%}")
    many = f", the largest of each {width} × {width} classes" if width > 1 else ""
    bar.set_label(f"share of the true class{many}")

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # boxes, in names of classes
        figure.savefig(file, format=form, dpi=150, bbox_inches="tight")
    return file.getvalue()


def _title(result: dict[str, Any]) -> str:
    low, high = result["interval_95"]
    return (
        f"accuracy {result['test_accuracy']:.4f} (95%: {low:.4f} to {high:.4f}), "
        f"n = {result['test_examples']:,}"
    )


def _fewer(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Cells that can be told apart: the largest share of so many classes a side each."""
    width = -(-len(shares) // _CELLS)
    starts = range(0, len(shares), width)
    # fmax passes over NaN where there is a number.
    return np.fmax.reduceat(np.fmax.reduceat(shares, starts, axis=0), starts, axis=1), width


def _name(axes: Axes, names: list[str]) -> None:
    """Put the names of classes at the ticks, as they are: a $ in one is no formula."""
    labels = range(len(names))
    shown = [class_label(names, label) for label in labels]
    shown = [n if len(n) <= _LONGEST_NAME else f"{n[: _LONGEST_NAME - 1]}…" for n in shown]
    turn = any(len(name) > 2 for name in shown)
    axes.set_xticks(labels, shown, rotation=45 if turn else 0, ha="right" if turn else "center")
    axes.set_yticks(labels, shown)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_parse_math(False)


def _number(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    """A tick for each class, and the number of examples in each cell unless it is 0."""
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    for (true, predicted), number in np.ndenumerate(counts):
        if number:
            color = "white" if shares[true, predicted] > 0.3 else "black"
            text = axes.text(predicted, true, str(number), ha="center", va="center")
            text.set(color=color, fontsize=9)
