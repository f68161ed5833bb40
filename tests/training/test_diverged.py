"""A run whose network gives no numbers says so, and every JSON file is JSON."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import pytest
import torch
from helpers.support import MakeConfig, folder, start

from dp_ray.artifacts.result import Result
from dp_ray.errors import DivergedError
from dp_ray.json_text import write_json
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.privacy.noise import KeyedNoiseOptimizer
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.reporting.summary import describe_result
from dp_ray.training.preparation import make_plan


def no_json(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def test_numbers_that_are_not_finite_become_null() -> None:
    text = write_json({"a": [math.nan, 1.0, (math.inf, -math.inf)], "b": {"c": math.nan}, "é": 2})
    assert text == '{"a": [null, 1.0, [null, null]], "b": {"c": null}, "é": 2}'


def test_a_run_that_diverges_publishes_nothing_and_says_why(make_config: MakeConfig) -> None:
    config = make_config(optimizer={"lr": 1e38})
    with pytest.raises(DivergedError, match=r"not finite \(NaN or infinity\).*optimizer\.lr"):
        start(config)
    run = folder(config)
    assert not (run / "release").exists()
    assert not (run / "result.json").exists()
    for file in run.rglob("*.json*"):
        lines = [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines()
        for line in lines:
            json.loads(line, parse_constant=no_json)


def test_parameters_that_are_not_finite_end_a_run_at_that_step(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was charged until then is named, and nothing more is charged."""
    plain = KeyedNoiseOptimizer.release

    def release(self: KeyedNoiseOptimizer, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        with torch.no_grad():
            self.params[0].view(-1)[0] = math.nan

    monkeypatch.setattr(KeyedNoiseOptimizer, "release", release)
    with pytest.raises(DivergedError, match=r"after step 0 .*keeps 1 noised sum") as caught:
        start(make_config())
    copy = pickle.loads(pickle.dumps(caught.value))  # as Ray hands it over
    assert str(copy) == str(caught.value)


def test_a_test_loss_that_is_not_finite_is_shown(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dp_ray.training.loop.shared_evaluation",
        lambda *_: Evaluation({"test_accuracy": 0.1, "test_loss": math.inf}),
    )
    config = make_config(privacy={"noise_multiplier": 0.0})
    result = start(config)
    assert result["test_loss"] is None
    assert "not finite" in describe_result(Result.model_validate(result))
    for file in folder(config).rglob("*.json"):
        json.loads(file.read_text(), parse_constant=no_json)
    plan = make_plan(config)
    assert plan.epsilon == math.inf
    assert PrivacyPlan.from_dump(json.loads(write_json(plan.dump()))) == plan
