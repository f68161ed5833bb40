"""The names of a run's classes: whose they are, and that each stays with its label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.support import MakeConfig, folder, start
from PIL import Image

import dp_ray
from dp_ray.artifacts.run_directory import deciding_fields
from dp_ray.data.class_names import names_of_classes
from dp_ray.data.facts import data_facts
from dp_ray.errors import ConfigError, DataError
from dp_ray.training.evaluate_run import evaluate_run

TREES = ["ash", "elm", "oak"]


@pytest.fixture
def trees(tmp_path: Path) -> dict[str, Any]:
    """The data section of images in folders."""
    for split, count in (("train", 4), ("test", 2)):
        for value, name in enumerate(TREES):
            (tmp_path / "trees" / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("L", (8, 8), 80 * value + i)
                image.save(tmp_path / "trees" / split / name / f"{i}.png")
    return {
        **{"name": "image_folder", "root": str(tmp_path / "trees"), "num_examples": 12},
        **{"num_classes": 3, "image_size": 8, "channels": 1, "expected_batch_size": 4},
    }


def test_names_of_folders_reach_the_release(make_config: MakeConfig, trees: dict[str, Any]) -> None:
    config = make_config(data=trees, privacy={"steps": 1})
    start(config)
    run = folder(config)
    assert dp_ray.load_model(run).preprocess.class_names == tuple(TREES)
    assert evaluate_run(str(run), []).figures["class_names"] == TREES
    assert "Classes: 0 ash, 1 elm, 2 oak." in (run / "release/README.md").read_text()
    [found] = dp_ray.predict(run, Path(trees["root"]) / "test/elm/0.png")
    assert found.class_name in TREES


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, TREES),
        (TREES, TREES),
        (["Fraxinus", "Ulmus", "Quercus"], ["Fraxinus", "Ulmus", "Quercus"]),
        (["ash", "Ulmus", "oak"], ["ash", "Ulmus", "oak"]),
    ],
)
def test_given_names_count_before_those_of_the_data(
    make_config: MakeConfig, trees: dict[str, Any], given: list[str] | None, names: list[str]
) -> None:
    config = make_config(data={**trees, "class_names": given}).data
    assert names_of_classes(config, TREES, 3) == tuple(names)


def test_names_in_another_order_are_refused(make_config: MakeConfig, trees: dict[str, Any]) -> None:
    """Each prediction would have the name of another class."""
    config = make_config(data={**trees, "class_names": ["elm", "ash", "oak"]})
    with pytest.raises(ConfigError, match="'elm' stands at label 0, and is label 1 of the data"):
        start(config)
    assert not (folder(config) / "release").exists()


def test_a_source_that_names_other_classes_than_it_has_is_refused(
    make_config: MakeConfig,
) -> None:
    with pytest.raises(DataError, match=r"2 names of classes, and data\.num_classes is 3"):
        names_of_classes(make_config().data, ["one", "two"], 3)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a"], "at least 2 items"),
        (["a", "b", "a"], "a name twice"),
        (["a", ""], "printable characters"),
        (["a", "b\nc"], "printable characters"),
        (["a", "\ud800"], "printable characters"),
        (["a", "b"], "2 names are given, and the data has 10 classes"),
    ],
)
def test_names_that_cannot_be_published_are_refused(
    make_config: MakeConfig, names: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        data_facts(make_config(data={"class_names": names}).data)


def test_a_folders_name_that_is_no_text_is_written_out() -> None:
    """No release could hold it, and a run would end after its budget is spent."""
    config = type("Section", (), {"name": "image_folder", "class_names": None})()
    [name, _] = names_of_classes(config, ["a\udcff", "b"], 2)
    assert name == r"a\xff"


def test_names_decide_nothing(make_config: MakeConfig) -> None:
    """Runs from before there were names keep their keys, and names may be given later."""
    named = make_config(data={"class_names": [f"n{i}" for i in range(10)]})
    assert deciding_fields(named) == deciding_fields(make_config())
