"""Predictions that are of no use: found by hand-made counts, and whoever counted which examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.support import MakeConfig, folder, start
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.objectives.single_label import SingleLabel
from dp_ray.objectives.useless import useless_predictions
from dp_ray.reporting.summary import describe_result
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.evaluation import evaluation_of

NAMES = ("ash", "elm", "oak")


@pytest.mark.parametrize(
    ("labels", "predicted", "right", "found"),
    [
        ([5, 3, 2], [4, 3, 3], 8, []),
        ([5, 3, 2], [7, 3, 0], 8, ["no test image is predicted as oak"]),
        (
            [5, 3, 2],
            [10, 0, 0],
            5,
            [
                "ash is predicted for every test image",
                "accuracy 0.5000 is no better than 0.5000, which ash as the answer to every test "
                "image would have",
            ],
        ),
        (
            [2, 6, 2],
            [4, 3, 3],
            5,
            [
                "accuracy 0.5000 is no better than 0.6000, which elm as the answer to every test "
                "image would have"
            ],
        ),
        ([4, 4, 0], [5, 3, 0], 7, []),  # oak has no test image, and no prediction
        ([4, 0, 0], [4, 0, 0], 4, []),  # there is nothing to tell apart
    ],
)
def test_by_hand(labels: list[int], predicted: list[int], right: int, found: list[str]) -> None:
    counts = np.array(labels), np.array(predicted)
    assert useless_predictions(*counts, right=right, names=NAMES) == found


def test_many_classes_are_counted_and_names_cannot_steer_a_terminal() -> None:
    labels, predicted = np.ones(20, int), np.zeros(20, int)
    predicted[:2] = 10
    [text, _] = useless_predictions(labels, predicted, right=1, names=())
    assert text.endswith("class 2, class 3, class 4, class 5, class 6 and 13 more")
    names = ["a\x1b[2J", "b"]
    [text, _] = useless_predictions(np.array([1, 1]), np.array([2, 0]), right=1, names=names)
    assert text.startswith(r"a\x1b[2J is predicted")


def test_the_counts_of_workers_add_up() -> None:
    """No worker by itself can tell: each sees predictions of one class."""
    objective = SingleLabel(3)
    labels = torch.tensor([0, 0, 1, 1])
    outputs = torch.eye(3)[[0, 0, 1, 1]]
    parts = [
        objective.update(objective.new_state(), outputs[part], labels[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    merged = evaluation_of(objective, torch.stack(parts).sum(dim=0), 4, NAMES)
    assert merged.warnings == ()
    assert merged.metrics["test_accuracy"] == 1
    wrong = objective.update(objective.new_state(), outputs[:2], torch.tensor([0, 1]))
    assert len(evaluation_of(objective, wrong, 2, NAMES).warnings) == 2


def test_train_and_evaluate_warn_and_a_run_that_continues_does_not(make_config: MakeConfig) -> None:
    """Without a step worth the name a network predicts few classes."""
    names = [f"digit {number}" for number in range(10)]
    config = make_config(data={"class_names": names}, privacy={"steps": 1}, optimizer={"lr": 1e-4})
    start(config)
    result = Result.read(RunDirectory.of(config).root)
    assert "no test image is predicted as digit" in result.warnings[0]
    assert f"warning       {result.warnings[0]}" in describe_result(result)
    assert result.running(2).warnings == []
    assert evaluate_run(str(folder(config)), []).figures["warnings"] == result.warnings
    shown = CliRunner().invoke(cli.app, ["evaluate", str(folder(config))]).output
    assert f"warning       {result.warnings[0]}" in shown
    assert "digit 9" in shown
