"""Test images with prediction and truth: which are shown, and where."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.support import MakeConfig, folder, start
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.reporting import prediction_sheet
from dp_ray.reporting.prediction_sheet import PICTURE, draw_predictions
from dp_ray.reporting.sheet import Sheet

NAMES = ["ash", "beech", "a tree of a long name"]


class Greys:
    """Images whose grey is their index."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = np.array(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        grey = ids.astype(np.uint8)[:, None, None, None]
        return np.broadcast_to(grey, (len(ids), 1, 8, 8)).copy(), self.labels[ids]


def drawn(
    labels: list[int], predicted: list[int], confidence: list[float], patch: pytest.MonkeyPatch
) -> tuple[list[int], list[str]]:
    """Which images are on the sheet, in order, and its texts."""
    sheets: list[Sheet] = []

    def png_of(sheet: Sheet, _width: int, _height: int) -> bytes:
        sheets.append(sheet)
        return b""

    patch.setattr(prediction_sheet, "png_of", png_of)
    columns: dict[str, Any] = {"labels": labels, "predicted": predicted, "confidence": confidence}
    arrays = {name: np.array(values) for name, values in columns.items()}
    draw_predictions(Greys(labels), arrays, NAMES)
    [sheet] = sheets
    return [int(tile[2].max()) for tile in sheet.tiles], [text[2] for text in sheet.texts][1:]


def test_mistakes_come_first_the_most_certain_before_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, texts = drawn([0, 1, 2, 0], [1, 1, 0, 2], [0.5, 0.4, 0.9, 0.6], monkeypatch)
    assert ids == [2, 3, 0, 1]
    assert texts == [
        "3 taken for another class, the most certain first",
        *("ash", "is a tree of a l…", "a tree of a l…", "is ash", "beech", "is ash"),
        "1 taken for what they are",
        "beech",
    ]


@pytest.mark.parametrize("predicted", [[0] * 60, [1] * 60])
def test_a_model_that_is_always_or_never_right(
    predicted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, texts = drawn([0] * 60, predicted, [0.5] * 60, monkeypatch)
    right = predicted[0] == 0
    assert texts[0].startswith("0 taken" if right else "60 taken")
    assert len(ids) == 24
    assert ids[-1] == (59 if right else 23)  # from all over the split, or the first of equals


def test_an_evaluation_draws_them_and_the_owner_s_page_alone_shows_them(
    make_config: MakeConfig,
) -> None:
    config = make_config(privacy={"steps": 2})
    start(config)
    run = folder(config)
    for command in (["evaluate"], ["report"], ["report", "--public"]):
        done = CliRunner().invoke(cli.app, [command[0], str(run), *command[1:]])
        assert done.exit_code == 0, done.output
    picture = run / "private" / PICTURE
    assert Image.open(io.BytesIO(picture.read_bytes())).width > 640
    assert picture.stat().st_mode & 0o077 == 0 or run.joinpath("private").stat().st_mode & 0o77 == 0
    shown = "data:image/png;base64,"
    assert shown in Path(run, "private/report.html").read_text()
    assert shown not in Path(run, "privacy-report.html").read_text()
    assert not list(Path(run, "release").glob("*.png"))
    released = CliRunner().invoke(cli.app, ["evaluate", str(run / "release")])
    assert released.exit_code == 0
    assert PICTURE not in released.output
