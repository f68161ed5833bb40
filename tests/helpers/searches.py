"""What tests of searches share: a search to start from, and trials without Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dp_ray.api.tune import run_sweep
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.search import SweepConfig
from dp_ray.search.result import SearchResult, TrialResult, Winner
from dp_ray.search.search import Search, TrialRecord, trial_name
from dp_ray.training.local import NullObserver, train_in_process
from dp_ray.training.task import Task
from helpers.support import key_of

N = 1437  # training examples of digits

MakeSweep = Callable[..., SweepConfig]
"""The type of the ``make_sweep`` fixture."""


def draw(sweep: SweepConfig) -> Search:
    return Search.draw(sweep, key_of(5))


def begin(sweep: SweepConfig, number: int = 5, *, replay: bool = True) -> Search:
    """A search that is drawn and laid out, with no trial started."""
    key = key_of(number)
    search = Search.draw(sweep, key)
    search.directory.create(sweep, key, search.points, search.budgets, replay=replay)
    return search


def run_trial(search: Search, index: int) -> RunDirectory:
    """What a trial does, without Ray."""
    assert search.points is not None
    config, plan = search.trial(trial_name(index), search.points[index])
    run = RunDirectory.of(config)
    search.begin(run, config, plan)
    TrialRecord(search.points[index], attempts=1, seconds=1.0).write(run)
    train_in_process(Task(config, plan, run, "test"), NullObserver())
    return run


def finish(search: Search, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Resume a search whose trials are all there, and return what result.json holds."""
    monkeypatch.setattr("dp_ray.on_ray.tuner.tune_on_ray", lambda *_, **__: True)
    return run_sweep(search.sweep, resume=True).dump()


def made_up_trial(**values: Any) -> TrialResult:
    """A finished trial; keyword arguments replace its values."""
    common = {
        "name": "0000",
        "status": "finished",
        "parameters": {"augment.views": 1, "privacy.steps": 50},
        "test_accuracy": 0.8,
        "test_loss": 0.5,
        "noise_multiplier": 4.0,
        "steps_planned": 50,
        "expected_batch_size": 64,
        "max_grad_norm": 1.0,
        "views": 1,
        "steps": 50,
        "charges": 50,
        "epsilon": 3.0,
        "seconds": 10.0,
        "attempts": 1,
        "error": None,
    }
    return TrialResult.model_validate(common | values)


def made_up(**values: Any) -> SearchResult:
    """A finished search of one trial; keyword arguments replace its values."""
    trial = made_up_trial()
    common = {
        "name": "find",
        "path": "runs/find",
        "status": "finished",
        "privacy_mode": "compose",
        "epsilon_of_search": 5.5,
        "epsilon_with_training": 6.5,
        "delta": 1e-4,
        "accountant": "rdp",
        "how": "every trial is charged",
        "warning": None,
        "metric": "test_accuracy",
        "mode": "max",
        "best": Winner.of(trial),
        "best_trial": trial.name,
        "trials": [trial],
        "seconds": 10.0,
    }
    return SearchResult.model_validate(common | values)


def runs_of(search: Search) -> list[RunDirectory]:
    return [RunDirectory(search.directory.trials / n) for n in search.directory.trials.names()]
