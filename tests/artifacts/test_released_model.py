"""Who may have a release's code imported, and what its documents must agree on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.releases import write_release
from helpers.support import MakeConfig
from PIL import Image
from typer.testing import CliRunner

import dp_ray
from dp_ray import cli
from dp_ray.api.predict import predict
from dp_ray.errors import ConfigError, DataError, DpRayError, RunError
from dp_ray.imports import import_object
from dp_ray.training.evaluate_run import evaluate_run

FOREIGN = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("imported").touch()

def build(num_classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))
"""


@pytest.fixture
def foreign(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release, alone in a folder, whose network is code of somebody else's."""
    (tmp_path / "foreign_code.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_code", raising=False)  # of another test
    config = make_config(model={"name": "foreign_code:build"})
    release = write_release(tmp_path / "from-elsewhere", config)
    monkeypatch.setenv("HOME", str(tmp_path))  # of somebody who has not trained with it
    (tmp_path / "imported").unlink()
    del sys.modules["foreign_code"]
    return release


USES: dict[str, Callable[[str], object]] = {
    "load": dp_ray.load_model,
    "predict": lambda place: predict(place, np.zeros((8, 8), np.uint8)),
    "evaluate": lambda place: evaluate_run(place, []).figures,
}


@pytest.mark.parametrize("use", USES)
def test_code_that_a_foreign_release_names_is_not_imported(
    foreign: Path, tmp_path: Path, use: str
) -> None:
    with pytest.raises(ConfigError, match=r"foreign_code:build.*--own-code"):
        USES[use](str(foreign))
    assert not (tmp_path / "imported").exists()


def test_code_is_imported_where_its_user_trusts_it_or_has_trained_with_it(
    foreign: Path, tmp_path: Path
) -> None:
    network, _ = dp_ray.load_model(foreign, own_code=True)
    assert (tmp_path / "imported").exists()
    assert not network.training
    with pytest.raises(ConfigError, match="--own-code"):  # that was of this file alone
        dp_ray.load_model(foreign)
    import_object("foreign_code:build", "model.name")  # as training does
    again, preprocess = dp_ray.load_model(foreign)
    x = preprocess(np.zeros((8, 8), np.uint8))
    assert torch.equal(again(x), network(x))


def test_a_run_is_given_as_a_path_or_as_an_object_that_has_one(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    class Run:
        path = str(write_release(tmp_path / "one", make_config()))

    network, preprocess = dp_ray.load_model(Run())
    loaded = dp_ray.load_model(Path(Run.path))
    assert loaded.preprocess == preprocess
    ours, theirs = network.state_dict(), loaded.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(RunError, match="there is no run"):
        dp_ray.load_model(tmp_path / "none")


def test_names_for_other_outputs_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    release = write_release(tmp_path / "one", make_config(), list("abcdefghij"))
    assert dp_ray.load_model(release).preprocess.class_names == tuple("abcdefghij")
    (release / "class_names.json").write_text(json.dumps({"format": 1, "names": ["a", "b"]}))
    with pytest.raises(RunError, match=r"class_names.json has 2 names for 10 classes"):
        dp_ray.load_model(release)


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        (["ash", "oak"], None),
        (["oak", "yew"], r"class 0 of the data is 'oak', and class 0 of the model is 'ash'"),
    ],
)
def test_data_whose_classes_are_others_is_not_evaluated(
    make_config: MakeConfig, tmp_path: Path, folders: list[str], problem: str | None
) -> None:
    """Labels count folders by name, so a class more or less would shift all others."""
    for split in ("train", "test"):
        for name in folders:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / "images" / split / name / "1.png")
    data = {
        **{"name": "image_folder", "root": str(tmp_path / "images"), "num_examples": 2},
        **{"num_classes": 2, "image_size": 8, "channels": 1, "expected_batch_size": 1},
    }
    release = write_release(tmp_path / "one", make_config(data=data), ["ash", "oak"])
    places = [f"data.{name}={tmp_path / part}" for name, part in PLACES]
    if problem is None:
        assert evaluate_run(str(release), places).figures["class_names"] == ["ash", "oak"]
        return
    with pytest.raises(DataError, match=problem):
        evaluate_run(str(release), places)


PLACES = (("root", "images"), ("cache", "cache"))


@pytest.mark.parametrize("place", ["release/s.csv", "release/deeper/s.csv", "link/s.csv"])
def test_scores_of_single_examples_are_not_written_into_a_release(
    make_config: MakeConfig, tmp_path: Path, place: str
) -> None:
    release = write_release(tmp_path / "release", make_config())
    (tmp_path / "link").symlink_to(release)
    (release / "deeper").mkdir()
    before = sorted(release.rglob("*"))
    for option, command in (("--scores", ["evaluate"]), ("--csv", ["predict", "x.png"])):
        words = [command[0], str(release), *command[1:], option, str(tmp_path / place)]
        result = CliRunner().invoke(cli.app, words)
        assert isinstance(result.exception, DpRayError)
        assert f"{option} = " in str(result.exception)
        assert "lies in a release, which is published" in str(result.exception)
    assert sorted(release.rglob("*")) == before


def test_scores_go_into_the_private_part(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(data={"class_names": [f"n{i}" for i in range(10)]})
    run = tmp_path / "run"
    write_release(run / "release", config, config.data.class_names or ())
    words = ["evaluate", str(run), "--set", f"data.cache={tmp_path / 'cache'}"]
    words += ["--scores", "scores.csv"]
    refused = CliRunner().invoke(cli.app, words)
    assert "has no private part" in str(refused.exception)
    (run / "private").mkdir(mode=0o700)
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    file = run / "private/scores.csv"
    assert f"scores        {file}" in result.output
    assert file.stat().st_mode & 0o777 == 0o600
    rows = [line.split(",") for line in file.read_text().splitlines()]
    assert rows[0] == [
        *("example", "label", "label_name", "predicted", "predicted_name", "confidence", "loss")
    ]
    figures = evaluate_run(str(run), [f"data.cache={tmp_path / 'cache'}"]).figures
    assert len(rows) == 361
    assert np.mean([row[1] == row[3] for row in rows[1:]]) == figures["test_accuracy"]
    assert np.mean([float(row[6]) for row in rows[1:]]) == pytest.approx(figures["test_loss"])
    assert all(row[2] == f"n{row[1]}" for row in rows[1:])
