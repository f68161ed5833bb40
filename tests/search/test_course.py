"""A search from its start to its end: taken up, cut off, checked, shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers.searches import MakeSweep, begin, finish, run_trial
from helpers.support import key_of
from rich.console import Console

from dp_ray.api import tune as sweep_module
from dp_ray.api.tune import plan_sweep, run_sweep
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.cluster import ClusterConfig
from dp_ray.config.search import parse_sweep
from dp_ray.errors import ConfigError, DpRayError, RunError
from dp_ray.ledger.lock import WriterLock
from dp_ray.reporting.search import describe_sweep_result
from dp_ray.reporting.search_progress import SweepProgress
from dp_ray.search.directory import SweepDirectory
from dp_ray.search.outcome import read_outcomes
from dp_ray.search.resources import threads_of_worker, trials_at_once
from dp_ray.search.search import Search, TrialRecord, trial_name


def test_two_cannot_search_at_once(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    monkeypatch.setattr(sweep_module, "OWNER_ENDS_S", 0.0)
    lock = WriterLock(search.directory.private, "other")
    try:
        with pytest.raises(DpRayError, match="process"):
            finish(search, monkeypatch)
    finally:
        lock.release()


def test_no_trial_at_all_is_an_outcome(make_sweep: MakeSweep) -> None:
    """The Poisson distribution may say 0; that, too, must not depend on anything private."""
    sweep = make_sweep(num_samples=1)
    key = next(k for k in map(key_of, range(50)) if not Search.draw(sweep, k).points)
    told = run_sweep(sweep, replay=key)
    assert (told.status, told.best) == ("finished", None)
    assert told.epsilon_of_search > 3.0
    assert "random number of trials was 0" in describe_sweep_result(told)


def test_a_search_is_taken_up_as_it_was(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    with pytest.raises(RunError, match="continue it with --resume"):
        run_sweep(search.sweep)
    for changed, field in (
        (make_sweep(privacy_mode="public"), "tune.privacy_mode"),
        (make_sweep(privacy_mode="compose", num_samples=9), "tune.num_samples"),
        (make_sweep(privacy_mode="compose", max_failures=9), "tune.max_failures"),
        (make_sweep({"privacy": {"epsilon": 8.0}}, privacy_mode="compose"), "privacy.epsilon"),
        (make_sweep({"optimizer": {"lr": 9.0}}, privacy_mode="compose"), "optimizer.lr"),
    ):
        with pytest.raises(ConfigError, match="was started with") as refused:
            run_sweep(changed, resume=True)
        assert refused.value.field == field
    seen: list[Search] = []

    def stop(found: Search, _example: Any, *, tell: Any, break_lock: bool) -> bool:
        assert not break_lock
        assert tell
        seen.append(found)
        return False

    monkeypatch.setattr("dp_ray.on_ray.tuner.tune_on_ray", stop)
    again = make_sweep({"cluster": {"cpus_per_worker": 2}}, privacy_mode="compose")
    told = run_sweep(again, resume=True)
    assert told.status == "stopped"
    assert "--resume" in describe_sweep_result(told)
    assert seen[0].points == search.points
    assert seen[0].budgets.solved == search.budgets.solved
    with pytest.raises(RunError, match="holds no search"):
        run_sweep(replace(again, name="other"), resume=True)


def test_a_search_that_was_cut_off_before_it_began_is_begun_anew(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    directory = SweepDirectory.of(sweep)
    directory.private.write("sweep.yaml", b"half")
    directory.lay_out()
    directory.check_free()
    directory.private.write("config.yaml", b"a run's")
    with pytest.raises(RunError, match="something else"):
        directory.check_free()


def test_all_trials_have_one_seed(make_sweep: MakeSweep) -> None:
    """It may be known: seeds of their own would tell the place of the best one, by its start."""
    point = {"augment.views": 1, "privacy.steps": 4, "privacy.max_grad_norm": 1.0}
    for seed in (3, None):
        search = begin(make_sweep({"seed": seed}), replay=False)
        assert {search.trial(name, point)[0].seed for name in ("a", "b")} == {seed}
        search.directory.root.delete("private")


def test_trials_are_checked_before_any_is_started(make_sweep: MakeSweep) -> None:
    sweep = make_sweep({"data": {"root": "/nowhere"}}, privacy_mode="compose")
    too_large = make_sweep(
        {"train": {"microbatch_size": 1_000_000}},
        space={"augment.views": {"choice": [1000]}, "privacy.steps": {"choice": [4]}},
        privacy_mode="compose",
    )
    with pytest.raises(ConfigError, match="microbatch_size"):
        plan_sweep(too_large)
    unknown = make_sweep(
        space={"optimizer.name": {"choice": ["SGB"]}, "privacy.steps": {"choice": [4]}},
        privacy_mode="compose",
    )
    with pytest.raises(ConfigError, match=r"optimizer\.name"):
        plan_sweep(unknown)
    plan_sweep(sweep)


def test_resources() -> None:
    """Trials × workers fit, or queue; a trial that fits nowhere is refused."""
    tune = parse_sweep({"name": "x", "tune": {"space": {"a": {"choice": [1]}}}}).tune
    has = {"CPU": 8.0, "GPU": 2.0}
    for cluster, expected in (
        ({"num_workers": 1}, 8),
        ({"num_workers": 0, "cpus_per_worker": 3}, 2),
        ({"num_workers": 3}, 2),
        ({"num_workers": [2, 4]}, 2),
        ({"num_workers": 1, "gpus_per_worker": 0.5}, 4),
        ({"num_workers": 2, "gpus_per_worker": 1}, 1),
    ):
        section = ClusterConfig.model_validate(cluster)
        assert trials_at_once(tune, section, has) == expected
    few = tune.model_copy(update={"max_concurrent_trials": 3})
    assert trials_at_once(few, ClusterConfig(), has) == 3
    with pytest.raises(ConfigError, match=r"9 × \(1 CPU\)"):
        trials_at_once(tune, ClusterConfig(num_workers=9), has)
    joined = ClusterConfig(num_workers=9, address="head:6379")
    assert trials_at_once(tune, joined, has) == 1  # a cluster may grow
    assert threads_of_worker(joined, 1) == 1
    assert threads_of_worker(ClusterConfig(cpus_per_worker=4), 1000) == 4


def test_progress_shows_trials_the_best_and_the_cost(make_sweep: MakeSweep) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    progress = SweepProgress(search, 5.25, Console(quiet=True))
    assert progress.lines()[0].startswith("starting Ray")
    points = search.points or []
    run = RunDirectory(search.directory.trials / trial_name(1))
    TrialRecord(points[1], attempts=1).write(run)
    reached = Progress(
        step=2,
        steps=4,
        charges=2,
        repaired=False,
        metrics={"test_accuracy": 0.25, "test_loss": 1.0},
        images_per_second=100.0,
        seconds_left=None,
        seconds=1.0,
    )
    reached.write(run.private)
    assert progress.lines()[0].startswith("0 of 3 trials done")
    run_trial(search, 0)
    failed = TrialRecord(points[2], attempts=3, error="x")
    failed.write(RunDirectory(search.directory.trials / trial_name(2)))
    head, *running = progress.lines()
    accuracy = read_outcomes(search)[0].metrics["test_accuracy"]
    for part in (
        "1 of 3 trials done",
        "1 failed",
        f"{accuracy:.3f}",
        "ε of the search 5.25",
        "left",
    ):
        assert part in head
    assert len(running) == 1
    assert running[0].startswith(f"  0001  step 2/{points[1]['privacy.steps']}, 0.250")
