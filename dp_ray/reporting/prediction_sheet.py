"""Test images with prediction and truth: what the model takes for what.

It shows private data, as the images themselves do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_ray.data.store import Examples
from dp_ray.objectives.useless import class_label
from dp_ray.reporting.sheet import ALARM, INK, MUTED, PRIVATE, Sheet, png_of, shortened, tile_of

PICTURE = "test_examples.png"
"""In a run's private part."""

COLUMNS = frozenset({"labels", "predicted", "confidence"})
"""Of single examples, by objectives of classes; see ``Objective.columns``."""

_ACROSS, _MOST = 8, 24
"""Images in a row, and of each kind."""

_WIDTH, _CAPTION, _MARGIN, _HEAD = 120, 44, 20, 56
_LONGEST_NAME = 14


def draw_predictions(
    test: Examples, examples: Mapping[str, NDArray[Any]], class_names: Sequence[str]
) -> bytes:
    """Return a PNG: mistakes, the most certain first, and images that the model is right on.

    Args:
        test: the test split.
        examples: the columns of :data:`COLUMNS`, [N] each.
        class_names: by label; empty if the classes have no names.
    """
    labels, predicted = examples["labels"], examples["predicted"]
    wrong, right = np.flatnonzero(labels != predicted), np.flatnonzero(labels == predicted)
    mistakes = wrong[np.argsort(-examples["confidence"][wrong], kind="stable")][:_MOST]
    spread = np.linspace(0, len(right) - 1, min(len(right), _MOST)).astype(int)
    sheet, y = Sheet(), _HEAD
    sheet.add_text(_MARGIN, 28, PRIVATE, 13, ALARM)
    for title, ids in (
        (f"{len(wrong)} taken for another class, the most certain first", mistakes),
        (f"{len(right)} taken for what they are", right[spread]),
    ):
        sheet.add_text(_MARGIN, y + 16, title, 13, INK)
        y += 30
        images, _ = test.read(ids)
        for place, (i, image) in enumerate(zip(ids, images, strict=True)):
            row, column = divmod(place, _ACROSS)
            tile = tile_of(image)
            x, top = _MARGIN + column * _WIDTH, y + row * (len(tile) + _CAPTION)
            sheet.add_tile(x, top, tile)
            said, is_wrong = _short(class_names, int(predicted[i])), labels[i] != predicted[i]
            sheet.add_text(x, top + len(tile) + 14, said, 10, ALARM if is_wrong else INK)
            if is_wrong:
                truth = f"is {_short(class_names, int(labels[i]))}"
                sheet.add_text(x, top + len(tile) + 28, truth, 10, MUTED)
        if len(ids):
            rows = -(-len(ids) // _ACROSS)
            y += rows * (len(tile_of(images[0])) + _CAPTION) + 10
    return png_of(sheet, 2 * _MARGIN + _ACROSS * _WIDTH, y + _MARGIN)


def _short(class_names: Sequence[str], label: int) -> str:
    return shortened(class_label(class_names, label), _LONGEST_NAME)
