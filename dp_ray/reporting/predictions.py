"""Predictions for people and for other programs: a table, CSV, JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from dp_ray.errors import printable
from dp_ray.json_text import write_json
from dp_ray.reporting.words import count

if TYPE_CHECKING:

    class Predicted(Protocol):
        """One prediction; see :class:`dp_ray.api.predict.Prediction`."""

        @property
        def image(self) -> str: ...
        @property
        def label(self) -> int: ...
        @property
        def class_name(self) -> str: ...
        @property
        def probability(self) -> float: ...
        @property
        def probabilities(self) -> Sequence[float]: ...


_LONGEST_NAME = 30


def describe_predictions(
    predictions: Sequence[Predicted], class_names: Sequence[str], skipped: Sequence[str]
) -> str:
    """Return a table for the terminal: the class of each image, and the next likely one.

    Args:
        predictions: in order.
        class_names: by label.
        skipped: entries of folders that were not read; they are named.
    """
    rows = [("class", "probability", "next", "probability", "image")]
    for found in predictions:
        order = sorted(range(len(class_names)), key=lambda i: -found.probabilities[i])
        pair = [label for label in order if label != found.label][:1]
        others = [(_name(class_names[i]), f"{found.probabilities[i]:.4f}") for i in pair]
        ours = (_name(found.class_name), f"{found.probability:.4f}")
        rows.append((*ours, *others[0], printable(found.image)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for row in rows:
        cells = [f"{cell:<{width}s}" for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]))
    if skipped:
        named = ", ".join(map(printable, skipped))
        entries = count(len(skipped), "entry", "entries")
        lines.append(f"skipped       {entries} of folders that are no images: {named}")
    return "\n".join(lines)


def predictions_csv(predictions: Sequence[Predicted], class_names: Sequence[str]) -> bytes:
    """Return a row for each image: its class, and the probability of each class by name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "class", "probability", *class_names])
    for found in predictions:
        values = (found.label, found.class_name, found.probability, *found.probabilities)
        writer.writerow([found.image, *values])
    return text.getvalue().encode(errors="backslashreplace")


def predictions_json(
    predictions: Sequence[Predicted], class_names: Sequence[str], skipped: Sequence[str]
) -> bytes:
    """Return one object with the names of the classes and a list of predictions."""
    items = [
        {
            "image": found.image,
            "label": found.label,
            "class": found.class_name,
            "probability": found.probability,
            "probabilities": list(found.probabilities),
        }
        for found in predictions
    ]
    values = {"class_names": list(class_names), "predictions": items, "skipped": list(skipped)}
    return (write_json(values, indent=2) + "\n").encode(errors="backslashreplace")


def _name(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"
