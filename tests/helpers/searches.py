"""What tests of searches share: a search to start from, and trials without Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dp_ray.api.tune import run_sweep
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.search import SweepConfig
from dp_ray.search.search import Search, TrialRecord, trial_name
from dp_ray.training.local import NobodyToTell, train_in_process
from dp_ray.training.session import Task
from helpers.support import QUIET, key_of

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
    train_in_process(Task(config, plan, run, "test"), NobodyToTell())
    return run


def finish(search: Search, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Goes on with a search whose trials are all there."""
    monkeypatch.setattr("dp_ray.on_ray.tuner.tune_on_ray", lambda *_, **__: True)
    return run_sweep(search.sweep, resume=True, console=QUIET)


def runs_of(search: Search) -> list[RunDirectory]:
    return [RunDirectory(search.directory.trials / n) for n in search.directory.trials.names()]
