"""Predictions for images: the same as evaluation makes, for people and for programs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.releases import write_release
from helpers.support import MakeConfig
from PIL import Image
from typer.testing import CliRunner

import dp_ray
from dp_ray import cli
from dp_ray.errors import ConfigError, DataError, ModelError

NAMES = ["ash", "béech", "elm, old"]


@pytest.fixture
def release(make_config: MakeConfig, tmp_path: Path) -> Path:
    """Of an untrained network for three classes of grey images."""
    data = {
        **{"name": "image_folder", "num_examples": 1000, "num_classes": 3},
        **{"image_size": 8, "channels": 1},
    }
    return write_release(tmp_path / "release", make_config(data=data), NAMES)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images, in a folder below too, and with what is none."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for name, shape in (("a.png", (9, 14, 3)), ("b.jpg", (8, 8)), ("more/c.png", (12, 8, 4))):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("")
    return folder


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(cli.app, ["predict", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_files_folders_and_images_in_memory_give_one_prediction_each(
    release: Path, images: Path
) -> None:
    found = dp_ray.predict(release, [images, images / "b.jpg"])
    files = ["a.png", "b.jpg", "more/c.png"]
    assert [p.image for p in found] == [str(images / name) for name in (*files, "b.jpg")]
    assert [Path(path).name for path in found.skipped] == [".hidden.png", "notes.txt"]
    network, preprocess = dp_ray.load_model(release)
    with torch.no_grad():
        expected = network(preprocess([images / name for name in files])).softmax(dim=1)
    np.testing.assert_allclose([p.probabilities for p in found[:3]], expected, atol=1e-6)
    assert [p.label for p in found[:3]] == expected.argmax(dim=1).tolist()
    assert all(p.class_name == NAMES[p.label] for p in found)
    assert all(p.probability == max(p.probabilities) for p in found)
    assert found[1].probabilities == pytest.approx(found[3].probabilities, abs=1e-6)
    assert dp_ray.predict(release, [images, images / "b.jpg"]) == found
    with Image.open(images / "a.png") as opened:
        [in_memory] = dp_ray.predict(release, opened)
    assert in_memory.image == "0"
    # The number of images that are passed together changes the last digits.
    assert in_memory.probabilities == pytest.approx(found[0].probabilities, abs=1e-6)
    pixels = np.asarray(Image.open(images / "b.jpg"))
    assert [len(dp_ray.predict(release, given)) for given in (pixels, [pixels, pixels])] == [1, 2]


def test_more_images_than_one_batch_keep_their_order(release: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 1, 8, 8), dtype=np.uint8)
    found = dp_ray.predict(release, pixels)
    network, preprocess = dp_ray.load_model(release)
    with torch.no_grad():
        expected = network(preprocess(pixels)).softmax(dim=1)
    np.testing.assert_allclose([p.probabilities for p in found], expected, atol=1e-6)
    assert [p.image for p in found] == [str(i) for i in range(150)]


def test_the_command_prints_a_table_and_writes_both_files(
    release: Path, images: Path, tmp_path: Path
) -> None:
    table, values = tmp_path / "out.csv", tmp_path / "out.json"
    text = run(release, images, "--csv", table, "--json", values)
    found = dp_ray.predict(release, images)
    lines = text.splitlines()
    assert lines[0].split() == ["class", "probability", "next", "probability", "image"]
    for line, prediction in zip(lines[1:], found, strict=False):
        assert line.startswith(prediction.class_name)
        assert f"{prediction.probability:.4f}" in line
        assert line.endswith(prediction.image)
    assert f"skipped       2 entries of folders that are no images: {images}/.hidden.png" in text
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["image", "label", "class", "probability", *NAMES]
    assert [row[2] for row in rows[1:]] == [p.class_name for p in found]
    assert [float(row[4]) for row in rows[1:]] == [p.probabilities[0] for p in found]
    told = json.loads(values.read_text())
    assert told["class_names"] == NAMES
    assert [tuple(p["probabilities"]) for p in told["predictions"]] == [
        p.probabilities for p in found
    ]
    assert len(told["skipped"]) == 2


def test_classes_without_names_are_numbers(make_config: MakeConfig, tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", make_config())
    [found] = dp_ray.predict(release, np.zeros((8, 8), np.uint8))
    assert found.class_name == str(found.label)


def test_images_that_cannot_be_used_are_all_named_and_nothing_is_predicted(
    release: Path, images: Path, tmp_path: Path
) -> None:
    (images / "b.jpg").write_text("no image either")
    (images / "d.png").write_bytes((images / "a.png").read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        dp_ray.predict(release, images)
    message = str(caught.value)
    assert message.startswith("2 of 4 images cannot be used: ")
    assert message.endswith("Nothing was predicted")
    for name in ("b.jpg", "d.png"):
        assert message.count(f"{images}/{name} is no readable image") == 1
    out = tmp_path / "out.csv"
    result = CliRunner().invoke(cli.app, ["predict", str(release), str(images), "--csv", str(out)])
    assert isinstance(result.exception, DataError)
    assert not result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["nowhere.png"], "nowhere.png: there is no such file or folder"),
        ([], "no image was given"),
        (
            [np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8)],
            "1 of 2 .* image 1: uint8 of",
        ),
        ([np.zeros((2, 1, 8, 8), np.uint8)], "image 0: it holds 2 images"),
    ],
)
def test_what_is_given_wrongly_is_refused(release: Path, given: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        dp_ray.predict(release, given)


def test_a_folder_without_images_is_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image: they have one of the suffixes"):
        dp_ray.predict(release, tmp_path / "empty")


FINDINGS = """
import torch.nn.functional as F
from dp_ray.objectives.objective import LabelSpec, Objective

class Findings(Objective):
    metrics = {"test_wrong": "min"}
    output_shape = (10,)
    labels = None

    def __init__(self, labels):
        self.labels = labels

    def losses(self, outputs, labels):
        if labels.ndim == 1:
            return F.cross_entropy(outputs, labels, reduction="none")
        return F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").mean(1)

    def update(self, state, outputs, labels):
        return state + 1

def several(num_classes):
    return Findings(LabelSpec(0, 1, (10,), "float32"))

def one(num_classes):
    return Findings(LabelSpec(0, 9))
"""


def test_outputs_that_are_no_probabilities_are_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_objective.py").write_text(FINDINGS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_objective", raising=False)  # of another test
    image = np.zeros((8, 8), np.uint8)
    for name in ("one", "several"):
        config = make_config(objective={"name": f"my_objective:{name}"})
        release = write_release(tmp_path / name, config)
    monkeypatch.setenv("HOME", str(tmp_path))  # of somebody who has not trained with it
    with pytest.raises(ConfigError, match=r"my_objective:several.*--own-code"):
        dp_ray.predict(release, image)
    with pytest.raises(ConfigError, match=r"my_objective:several': the outputs of this model are"):
        dp_ray.predict(release, image, own_code=True)
    assert len(dp_ray.predict(tmp_path / "one", image, own_code=True)) == 1


def test_outputs_that_are_no_numbers_are_refused(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dp_ray.artifacts.released_model.ReleasedModel.network",
        lambda _self: lambda x: torch.full((len(x), 3), torch.nan),
    )
    with pytest.raises(ModelError, match="0: the network gives no finite outputs"):
        dp_ray.predict(release, np.zeros((8, 8), np.uint8))
