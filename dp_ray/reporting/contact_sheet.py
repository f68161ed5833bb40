"""A contact sheet: examples of each class as they were decoded, and as the network gets them.

It shows private data, as the images themselves do.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray

from dp_ray.config.data import AugmentConfig
from dp_ray.data.store import Dataset, Examples
from dp_ray.data.views import ViewMaker
from dp_ray.keys import KeyedStream
from dp_ray.reporting.sheet import ALARM, INK, MUTED, PRIVATE, Sheet, png_of, shortened, tile_of

_ROWS = 24
"""Rows at most; of more classes, as many from the first to the last."""

_FEW_ROWS = 12
"""Where classes are few, each gets several rows."""

_VIEWS = 8
_TRAIN_WIDTH = 900
_TEST_TILES = 3

_GAP, _SPACE, _MARGIN, _HEAD = 4, 24, 20, 84
_LONGEST_NAME = 18


def draw_contact_sheet(dataset: Dataset, augment: AugmentConfig) -> bytes:
    """A PNG with a row for each class: training examples with their views, then test examples.

    Args:
        dataset: what is shown.
        augment: makes the views of the training examples.
    """
    classes = class_names(dataset)
    labels = np.union1d(np.asarray(dataset.train.labels), np.asarray(dataset.test.labels))
    shown = labels[np.linspace(0, len(labels) - 1, min(len(labels), _ROWS)).astype(int)]
    rows_each = max(min(_FEW_ROWS // max(len(shown), 1), 6), 1)
    views = min(augment.views, _VIEWS)
    side = len(tile_of(np.zeros((1, *[dataset.facts.image_size] * 2), dtype=np.uint8)))
    block = (views + 1) * (side + _GAP) + _SPACE
    across = max(min(_TRAIN_WIDTH // block, 3), 1)
    sheet, maker = Sheet(), ViewMaker(augment, dataset.facts, torch.device("cpu"))
    names = {label: _name(label, classes[label]) for label in shown}
    train_left = 3 * _MARGIN + 8 * max(map(len, [*names.values(), "class"]))
    test_left = train_left + across * block + _SPACE
    _head(sheet, augment.views, views, train_left, test_left)
    y = _HEAD
    for label in shown:
        sheet.add_text(_MARGIN, y + side // 2 + 4, names[label], 11, INK)
        for place, stack in enumerate(
            _examples(dataset.train, label, across * rows_each, maker, views)
        ):
            row, column = divmod(place, across)
            left = train_left + column * block
            for number, image in enumerate(stack):
                x = left + number * (side + _GAP) + (_GAP if number else 0)
                sheet.add_tile(x, y + row * (side + _GAP), tile_of(image), framed=number == 0)
        for place, stack in enumerate(_examples(dataset.test, label, _TEST_TILES * rows_each)):
            row, column = divmod(place, _TEST_TILES)
            x = test_left + column * (side + _GAP)
            sheet.add_tile(x, y + row * (side + _GAP), tile_of(stack[0]))
        y += rows_each * (side + _GAP) + 10
    if len(shown) < len(labels):
        sheet.add_text(_MARGIN, y + 16, f"{len(shown)} of {len(labels)} classes", 10, MUTED)
        y += 24
    return png_of(sheet, test_left + _TEST_TILES * (side + _GAP) + _MARGIN, y + _MARGIN)


def class_names(dataset: Dataset) -> list[str]:
    """Names by label; numbers where the data has no names."""
    count = dataset.facts.num_classes
    return list(dataset.class_names) or [str(label) for label in range(count)]


def _head(sheet: Sheet, views: int, shown: int, train_left: int, test_left: int) -> None:
    sheet.add_text(_MARGIN, 30, PRIVATE, 13, ALARM)
    more = f" ({shown} shown)" if shown < views else ""
    note = f"framed: as decoded; then K = {views} view{'' if views == 1 else 's'} as trained on"
    for x, title, about in (
        (train_left, "train", note + more),
        (test_left, "test", "as evaluated"),
    ):
        sheet.add_text(x, _HEAD - 14, title, 13, INK)
        sheet.add_text(x + 48, _HEAD - 14, about, 10, MUTED)
    sheet.add_text(_MARGIN, _HEAD - 14, "class", 13, INK)


def _name(label: int, name: str) -> str:
    if str(label) == name:
        return name
    return f"{label} · {shortened(name, _LONGEST_NAME)}"


def _examples(
    examples: Examples, label: int, most: int, maker: ViewMaker | None = None, views: int = 0
) -> NDArray[np.uint8]:
    """Examples of a class, from all over the split: [n, 1 + views, C, S, S], as decoded first."""
    ids = np.flatnonzero(np.asarray(examples.labels) == label)
    ids = ids[np.unique(np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(int))]
    images, _ = examples.read(ids)
    if maker is None or not len(ids):
        return images[:, None]
    # Any key will do: nothing that is drawn here is used in a run.
    stream = KeyedStream(os.urandom(32), incarnation=0, step=0)
    made = maker.make(torch.from_numpy(images), maker.draw(stream, ids))[:, :views]
    return np.concatenate([images[:, None], maker.denormalize(made).numpy()], axis=1)
