"""What a search leaves, who may see it, and what is charged for what went wrong."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.object_store import serve_objects
from helpers.searches import MakeSweep, begin, finish, run_trial, runs_of
from helpers.support import start

from dp_ray.api import tune as sweep_module
from dp_ray.api.tune import run_sweep
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.files import load_config
from dp_ray.errors import RunError
from dp_ray.ledger.balance import Charge
from dp_ray.ledger.ledger import Ledger
from dp_ray.reporting.ledger import ledger_facts
from dp_ray.reporting.search import describe_sweep_result
from dp_ray.reporting.search_page import sweep_page
from dp_ray.reporting.summary import describe_result
from dp_ray.search.cost import search_cost
from dp_ray.search.outcome import read_outcomes, settled
from dp_ray.search.publish import read_decision
from dp_ray.search.result import SearchResult, SearchSummary
from dp_ray.search.search import TrialRecord, trial_name
from dp_ray.training.evaluate_run import evaluate_run


def test_private_selection_tells_of_the_best_alone(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(make_sweep(num_samples=4))
    points = search.points or []
    assert len(points) > 1
    for index in range(len(points)):
        run_trial(search, index)
    outcomes = read_outcomes(search)
    accuracies = [outcome.metrics["test_accuracy"] or 0.0 for outcome in outcomes]
    best = accuracies.index(max(accuracies))
    told = finish(search, monkeypatch)
    root = search.directory.root.path
    assert root is not None

    assert told == json.loads((root / "result.json").read_text())
    assert told["best"]["parameters"] == points[best]
    assert told["best"]["test_accuracy"] == max(accuracies)
    assert told["epsilon_of_search"] == search_cost(search).epsilon
    assert told["epsilon_of_search"] > told["best"]["epsilon_of_this_run_alone"]
    # Neither the others nor how many there were, nor what tells it: a place, a time.
    assert not {"trials", "best_trial", "seconds", "failed"} & set(told)
    public = {p.name for p in root.iterdir()} - {"private"}
    assert public == {"result.json", "best.yaml", "release"}
    texts = [
        (root / name).read_text()
        for name in ("result.json", "best.yaml", "release/privacy.json", "release/config.yaml")
    ]
    for text in texts:
        assert f'"{trial_name(best)}"' not in text
        assert f"'{trial_name(best)}'" not in text
        assert str(root / "private") not in text
        for index, point in enumerate(points):
            assert (str(point["privacy.max_grad_norm"]) in text) <= (index == best)
    assert stat.S_IMODE((root / "private").stat().st_mode) == 0o700

    everything = json.loads((root / "private/results.json").read_text())
    assert [t["parameters"] for t in everything["trials"]] == points
    assert "Private: ε holds only while" in (root / "private/report.html").read_text()
    # What the losers learnt is gone; what they cost is not.
    for index in range(len(points)):
        run = RunDirectory(search.directory.trials / trial_name(index))
        assert run.root.exists("release") == (index == best)
        assert bool(run.checkpoints.names()) == (index == best)
        assert run.read_ledger().charges == points[index]["privacy.steps"]

    assert yaml.safe_load((root / "release/config.yaml").read_text())["name"] == "search"
    statement = json.loads((root / "release/privacy.json").read_text())
    assert "This search repeats" in statement["warning"]  # as tests' searches do
    assert statement["epsilon"] == told["epsilon_of_search"]
    assert statement["search"]["of_this_run_alone"]["epsilon"] < statement["epsilon"]
    assert any("not even their number" in text for text in statement["assumptions"])
    shown = describe_sweep_result(SearchSummary.model_validate(told))
    assert shown.startswith("ε of search   ε = ")
    assert "which is not the cost" in shown
    assert all(f"{a:.4f}" not in shown for a in accuracies if a != max(accuracies))


@pytest.mark.slow
def test_compose_tells_of_all_trials_and_best_yaml_trains(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    for index in range(3):
        run_trial(search, index)
    told = finish(search, monkeypatch)
    root = search.directory.root.path
    assert root is not None
    assert [trial["status"] for trial in told["trials"]] == ["finished"] * 3
    assert all(2.99 <= trial["epsilon"] <= 3.0 for trial in told["trials"])
    page = (root / "report.html").read_text()
    for part in ("All fields at once", "views (K)", "Budget", "ε of the search"):
        assert part in page
    assert "<script" not in page
    assert "Private: ε holds only while" not in page

    assert evaluate_run(str(root), []).figures["test_accuracy"] == told["best"]["test_accuracy"]

    config = load_config(root / "best.yaml")
    best = told["best"]
    assert config.name == "search-best"
    assert config.seed is None
    assert config.augment.views == best["parameters"]["augment.views"]
    assert config.privacy.noise_multiplier == best["noise_multiplier"]
    assert config.privacy.steps == best["steps"]
    assert config.train.storage_path == str(root.parent)
    assert f"{told['epsilon_with_training']:.4f}" in (root / "best.yaml").read_text()
    # Trained on its own, its statement counts the search that found it.
    assert config.privacy.search_epsilon == told["epsilon_of_search"]
    trained = start(config)
    total = told["epsilon_of_search"] + trained["epsilon"]
    assert trained["epsilon_with_search"] == pytest.approx(total)
    assert trained["epsilon_with_search"] >= told["epsilon_with_training"]
    statement = json.loads((root.parent / "search-best/release/privacy.json").read_text())
    assert statement["epsilon_with_search"] == trained["epsilon_with_search"]
    assert statement["delta_with_search"] == 2 * statement["delta"]
    assert not any("without looking" in text for text in statement["assumptions"])
    assert "with search" in describe_result(Result.model_validate(trained))
    with pytest.raises(RunError, match="is a search"):
        ledger_facts(str(root))
    with pytest.raises(RunError, match="finished search"):
        finish(search, monkeypatch)
    with pytest.raises(RunError, match="finished search"):
        run_sweep(search.sweep)


@pytest.mark.slow
def test_a_search_in_an_object_store(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_objects() as store:
        place = {"train": {"storage_path": f"s3://{store.bucket}/runs"}}
        search = begin(make_sweep(place, num_samples=4))
        for index in range(len(search.points or [])):
            run_trial(search, index)
        told = finish(search, monkeypatch)
        folder = search.directory.root
        assert told == json.loads(folder.read("result.json"))
        assert folder.names() == ["best.yaml", "private", "release", "result.json"]
        again = evaluate_run(folder.uri, []).figures
        assert again["test_accuracy"] == told["best"]["test_accuracy"]
        kept = [r.root.exists("release") for r in runs_of(search)]
        assert sorted(kept) == [False] * (len(kept) - 1) + [True]


def test_what_failed_or_was_lost_is_charged(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever nobody can tell any more is counted whole; only what was never charged is not."""
    search = begin(make_sweep(privacy_mode="compose", num_samples=7))
    points, steps = search.points or [], [p["privacy.steps"] for p in search.points or []]
    whole = run_trial(search, 0)
    no_ledger = run_trial(search, 1)
    remove(no_ledger.ledger.path)
    no_private = run_trial(search, 2)
    remove(no_private.private.path)
    no_record = run_trial(search, 3)
    no_record.root.delete("trial.json")
    config, plan = search.trial(trial_name(4), points[4])
    cut_off = RunDirectory.of(config)
    cut_off.create(config, plan)
    TrialRecord(points[4], attempts=3, error="no memory").write(cut_off)
    remove(cut_off.ledger.path)
    unstarted = TrialRecord(points[5], attempts=1, error="no memory")
    unstarted.write(RunDirectory(search.directory.trials / trial_name(5)))
    # The seventh's folder is gone, and Tune says that it was run.

    outcomes = settled(search, read_outcomes(search))
    statuses = ["finished"] * 4 + ["failed"] * 3
    assert [o.status for o in outcomes] == statuses
    assert [o.charges for o in outcomes] == [*steps[:4], 0, 0, steps[6]]
    told = finish(search, monkeypatch)
    paid = [whole.read_ledger().history]
    paid += [search.budgets.trial_at(points[i])[1].releases for i in (1, 2, 3, 6)]
    assert told["epsilon_of_search"] == pytest.approx(search_cost(search, paid).epsilon)
    shown = describe_sweep_result(SearchSummary.model_validate(told))
    assert "failed (3 starts)" in shown
    page = sweep_page(
        SearchResult.model_validate(told), None
    )  # may be published, and a cause may name a file of the data
    assert page.count("private/results.json says why") == 3
    assert "no memory" not in page


def remove(path: Path | None) -> None:
    """A folder, as a mishap does."""
    assert path is not None
    shutil.rmtree(path)


def test_what_was_stopped_early_is_said(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(make_sweep(privacy_mode="compose", scheduler="asha", num_samples=2))
    points = search.points or []
    run_trial(search, 0)
    config, plan = search.trial(trial_name(1), points[1])
    begun = RunDirectory.of(config)
    begun.create(config, plan)
    TrialRecord(points[1], attempts=1).write(begun)
    told = finish(search, monkeypatch)
    assert [t["status"] for t in told["trials"]] == ["finished", "stopped early"]
    assert told["epsilon_of_search"] == search_cost(search).epsilon  # charged whole


def test_a_trial_that_is_left_keeps_the_search_open(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ended Tune: without a scheduler nothing stops a trial early."""
    search = begin(make_sweep(privacy_mode="compose", num_samples=2))
    run_trial(search, 0)
    begun = RunDirectory(search.directory.trials / trial_name(1))
    TrialRecord((search.points or [])[1], attempts=1).write(begun)
    assert finish(search, monkeypatch)["status"] == "stopped"
    assert not search.directory.root.exists("release")


@pytest.mark.parametrize("change", ["one more sum", "another rate"])
def test_a_trial_that_was_gone_on_with_elsewhere_is_not_published(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The bound of a selection is on the plans; more steps on the side would break it."""
    search = begin(make_sweep(num_samples=4))
    for index in range(len(search.points or [])):
        run = run_trial(search, index)
    ledger = run.write_ledger("aside")
    ledger.amend_plan(replace(ledger.plan, steps=ledger.plan.steps + 1))
    sigma, rate, _ = ledger.history[-1]
    body = {"step": 99, "incarnation": 0, "digest": "ab", "noise_multiplier": sigma}
    if change == "another rate":  # which today's ledgers refuse
        rate /= 2
        monkeypatch.setattr(Ledger, "affords", lambda *_: True)
    ledger.charge(Charge(**body, max_grad_norm=1.0, sample_rate=rate))
    ledger.close()
    with pytest.raises(RunError, match="outside of the search"):
        finish(search, monkeypatch)
    assert not search.directory.root.exists("release")


def test_nothing_finished_nothing_published(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    for index, point in enumerate(search.points or []):
        record = TrialRecord(point, attempts=3, error="the disk is full")
        record.write(RunDirectory(search.directory.trials / trial_name(index)))
    for _ in range(2):  # it can be resumed
        with pytest.raises(RunError, match=r"the disk is full.*--resume"):
            finish(search, monkeypatch)
    assert not search.directory.root.exists("release")


@pytest.mark.parametrize(
    "crash_at",
    [
        "publish_search",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("search_report", "forget_losers")),
    ],
)
def test_the_best_is_chosen_once(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    """A crash after the choice must not let another trial be published as well."""
    search = begin(make_sweep(num_samples=4))
    points = search.points or []
    for index in range(len(points) - 1):
        run_trial(search, index)
    last = RunDirectory(search.directory.trials / trial_name(len(points) - 1))
    TrialRecord(points[-1], attempts=3, error="no memory").write(last)

    def crash(*_arguments: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, crash_at, crash)
        with pytest.raises(RuntimeError):
            finish(search, patch)
    decided = read_decision(search)
    assert decided is not None
    assert decided.best is not None
    # By now the last trial would do best, were it asked again.
    run = run_trial(search, len(points) - 1)
    better = Result.read(run.root).model_copy(update={"metrics": {"test_accuracy": 1.0}})
    better.write(run.root)
    told = finish(search, monkeypatch)
    assert told["best"] == decided.dump()["best"]
    assert decided.best.parameters != points[-1]
    assert told["best"]["test_accuracy"] < 1.0
    assert (search.directory.root / "release").names()


def test_a_public_search_says_what_the_run_would_cost(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(make_sweep(privacy_mode="public", num_samples=2))
    for index in range(2):
        run_trial(search, index)
    told = finish(search, monkeypatch)
    assert told["epsilon_of_search"] == 0.0
    statement = json.loads((search.directory.root / "release").read("privacy.json"))
    assert 2.99 < statement["epsilon"] <= 3.0
    assert statement["search"]["epsilon_of_search"] == 0.0
    assert any("is public, as its user declares" in text for text in statement["assumptions"])
    assert describe_sweep_result(SearchSummary.model_validate(told)).startswith(
        "ε of search   0: you declare the data public"
    )


def test_the_loss_may_be_the_metric(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small is good; a loss that is no number is never the best."""
    search = begin(make_sweep(privacy_mode="compose", metric="test_loss"))
    losses = []
    for index in range(3):
        run = run_trial(search, index)
        losses.append(Result.read(run.root).metrics["test_loss"] or 0.0)
    assert all(loss > 0 for loss in losses)
    least = losses.index(min(losses))
    diverged = RunDirectory(search.directory.trials / trial_name(least))
    result = Result.read(diverged.root)
    metrics = {**result.metrics, "test_loss": None}
    result.model_copy(update={"metrics": metrics}).write(diverged.root)
    told = finish(search, monkeypatch)
    assert told["best"]["test_loss"] == sorted(losses)[1]
    assert told["mode"] == "min"
