"""A search without Ray: its space, its equal budgets, what it costs, and what it publishes."""

from __future__ import annotations

import io
import json
import math
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from object_store import serve_objects
from rich.console import Console
from support import QUIET, MakeConfig, start

from dp_ray.cluster import sweep as sweep_module
from dp_ray.cluster.local import NobodyToTell, train_in_process
from dp_ray.cluster.sweep import plan_sweep, run_sweep
from dp_ray.cluster.sweep_progress import SweepProgress
from dp_ray.config import ClusterConfig
from dp_ray.config_file import load_config
from dp_ray.errors import ConfigError, DpRayError, RunError
from dp_ray.keys import RunKey
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.balance import Charge
from dp_ray.privacy.lock import WriterLock
from dp_ray.privacy.selection import TrialCount, adaptive_epsilon, selection_epsilon
from dp_ray.report.ledger import ledger_facts
from dp_ray.report.summary import describe_result
from dp_ray.report.sweep import describe_search, describe_sweep_result
from dp_ray.report.sweep_page import sweep_page
from dp_ray.sweep_config import Domain, SweepConfig, load_sweep, parse_sweep
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.plan import PrivacyPlan
from dp_ray.training.run_directory import RunDirectory
from dp_ray.training.session import Task
from dp_ray.tuning import budget
from dp_ray.tuning.cost import search_cost
from dp_ray.tuning.outcome import read_outcomes, settled
from dp_ray.tuning.publish import read_decision
from dp_ray.tuning.resources import threads_of_worker, trials_at_once
from dp_ray.tuning.search import Search, TrialRecord, trial_count, trial_name
from dp_ray.tuning.space import point_at
from dp_ray.tuning.sweep_directory import SweepDirectory

N = 1437  # training examples of digits
CONFIGS = sorted((Path(__file__).parents[2] / "configs/sweeps").glob("*.yaml"))

MakeSweep = Callable[..., SweepConfig]


@pytest.fixture
def make_sweep(make_config: MakeConfig) -> MakeSweep:
    """Builds a small search; keyword arguments replace fields of its tune section."""

    def make(training: dict[str, Any] | None = None, **tune: Any) -> SweepConfig:
        values = make_config().dump()
        values["name"] = "search"
        values["privacy"].update(epsilon=3.0, noise_multiplier=None, steps=None, accountant="rdp")
        for section, fields in (training or {}).items():
            if isinstance(fields, dict):
                values[section].update(fields)
            else:
                values[section] = fields
        space = {
            "augment.views": {"choice": [1, 2]},
            "privacy.steps": {"choice": [4, 8]},
            "privacy.max_grad_norm": {"log_uniform": [0.5, 2]},
        }
        return parse_sweep({**values, "tune": {"space": space, "num_samples": 3, **tune}})

    return make


def draw(sweep: SweepConfig) -> Search:
    return Search.draw(sweep, RunKey.from_seed(5))


def begin(sweep: SweepConfig, seed: int = 5) -> Search:
    """A search that is drawn and laid out, with no trial started."""
    key = RunKey.from_seed(seed)
    search = Search.draw(sweep, key)
    search.directory.create(sweep, key, search.points, search.budgets)
    return search


def run_trial(search: Search, index: int) -> RunDirectory:
    """What a trial does, without Ray."""
    assert search.points is not None
    config, plan = search.trial(trial_name(index), search.points[index])
    run = RunDirectory.of(config)
    run.create(config, plan)
    TrialRecord(search.points[index], attempts=1, seconds=1.0).write(run)
    train_in_process(Task(config, plan, run, "test"), NobodyToTell())
    return run


def finish(search: Search, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Goes on with a search whose trials are all there."""
    monkeypatch.setattr("dp_ray.cluster.tuner.tune_on_ray", lambda *_, **__: True)
    return run_sweep(search.sweep, resume=True, console=QUIET)


# The space


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        ({"choice": ["a", "b"]}, {0.0: "a", 0.49: "a", 0.5: "b", 0.999: "b"}),
        ({"grid": [1, 2, 4]}, {0.0: 1, 0.34: 2, 0.999: 4}),
        ({"uniform": [2, 4]}, {0.0: 2.0, 0.25: 2.5, 0.5: 3.0}),
        ({"log_uniform": [1, 100]}, {0.0: 1.0, 0.5: 10.0}),
        ({"integer": [3, 5]}, {0.0: 3, 0.34: 4, 0.999: 5}),
    ],
)
def test_values_are_quantiles(domain: dict[str, Any], values: dict[float, Any]) -> None:
    found = Domain.model_validate(domain)
    for share, value in values.items():
        assert found.at(share) == pytest.approx(value) if isinstance(value, float) else value
        assert type(found.at(share)) is type(value)


def test_levels_of_a_range_are_few_and_equally_likely() -> None:
    domain = Domain.model_validate({"log_uniform": [1, 16]})
    levels = domain.levels(4)
    assert levels == pytest.approx([2**0.5, 2**1.5, 2**2.5, 2**3.5])
    space = {"privacy.noise_multiplier": domain}
    drawn = [point_at(space, 4, {"privacy.noise_multiplier": i / 100}) for i in range(100)]
    counts = Counter(point["privacy.noise_multiplier"] for point in drawn)
    assert counts == dict.fromkeys(levels, 25)
    assert Domain.model_validate({"integer": [2, 4]}).levels(8) == [2, 3, 4]
    assert len(Domain.model_validate({"integer": [1, 1000]}).levels(8)) == 8


@pytest.mark.parametrize(
    ("space", "field", "expected"),
    [
        ({"privacy.epsilon": {"choice": [1, 2]}}, "tune.space.privacy.epsilon", "equal budget"),
        ({"data.name": {"choice": ["mnist"]}}, "tune.space.data.name", "one data set"),
        ({"seed": {"choice": [1, 2]}}, "tune.space.seed", "own randomness"),
        ({"train.charge_every": {"choice": [1]}}, "tune.space.train.charge_every", "learns"),
        ({"augment.views": {"grid": [1, 2]}}, "tune.space.augment.views", "choice instead"),
        ({"augment.viewz": {"choice": [1]}}, "tune.space.augment.viewz", "mean augment.views"),
        ({"augment": {"choice": [1, 2]}}, "tune.space.augment", "no such field"),
        ({"augment.views": {"choice": [0]}}, "tune.space.augment.views", "0 cannot be used"),
        ({"augment.views": {"uniform": [1, 4]}}, "tune.space.augment.views", "valid integer"),
        ({"optimizer.lr": {"uniform": [-1, 2]}}, "tune.space.optimizer.lr", "greater than 0"),
        ({}, "tune.space", "nothing to search"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    make_sweep: MakeSweep, space: dict[str, Any], field: str, expected: str
) -> None:
    sweep = make_sweep({"privacy": {"steps": 4}}, space=space)
    with pytest.raises(ConfigError, match=expected) as refused:
        draw(sweep)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("tune", "field", "expected"),
    [
        ({"space": {"augment.views": {}}}, "tune.space.augment.views", "nothing"),
        ({"space": {"augment.views": 3}}, "tune.space.augment.views", "no values to try"),
        ({"space": {"optimizer.lr": {"uniform": [2, 1]}}}, "tune.space.optimizer.lr", "not below"),
        (
            {"space": {"optimizer.lr": {"log_uniform": [0, 1]}}},
            "tune.space.optimizer.lr",
            "no logarithm",
        ),
        (
            {"space": {"optimizer.lr": {"uniform": [1, 2], "choice": [1]}}},
            "tune.space.optimizer.lr",
            "exactly one",
        ),
        ({"num_sample": 3}, "tune.num_sample", "Did you mean tune.num_samples"),
        ({"privacy_mode": "none"}, "tune.privacy_mode", "private_selection"),
        ({"space": {"augment.views": {"choise": [1]}}}, "tune.space.augment.views.choise", "mean"),
        ({"num_samples": 0}, "tune.num_samples", "greater than or equal to 1"),
    ],
)
def test_mistakes_in_the_tune_section_name_the_field(
    make_sweep: MakeSweep, tune: dict[str, Any], field: str, expected: str
) -> None:
    if expected == "nothing":  # an empty mapping is a section without fields
        assert make_sweep(**tune).tune.space == {}
        return
    with pytest.raises(ConfigError, match=expected) as refused:
        make_sweep(**tune)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train=3", "train = 3: a section of fields is expected"),
        ("privacy=null", "privacy = None: a section of fields is expected"),
        ("optimizer.lrr=1", "Did you mean optimizer.lr"),
        ("seed=-1", "seed = -1: "),
        ("name=a/b", "name = 'a/b': it has a character that is not allowed there"),
        ("tune=3", "tune = 3: a section of fields is expected"),
        ("tune.space=3", "tune.space = 3: "),
        ("data.expected_batch_size=99999", "q = 99999/1437 is above 1"),
        ("privacy.delta=0.5", "δ must be below 1/N"),
    ],
)
def test_mistakes_in_a_sweep_file_are_told(
    tmp_path: Path, make_sweep: MakeSweep, override: str, expected: str
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(make_sweep().dump()))
    with pytest.raises(ConfigError) as refused:
        run_sweep(load_sweep(path, [override]), resume=False, console=QUIET)
    assert expected in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_fields_may_be_nested_and_taken_out(tmp_path: Path, make_sweep: MakeSweep) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(make_sweep().dump()))
    views = "tune.space.augment.views={choice: [3]}"
    sweep = load_sweep(path, [views, "tune.space.privacy.max_grad_norm=null"])
    assert sweep.tune.space["augment.views"].choice == [3]
    assert "privacy.max_grad_norm" in sweep.tune.space  # the file's own dotted key still gives it
    sweep = load_sweep(path, ["tune.space={augment: {views: {choice: [1, 2]}}}"])
    assert list(sweep.tune.space) == ["augment.views"]
    with pytest.raises(DpRayError, match="use dp-ray tune"):
        load_config(path)
    with pytest.raises(DpRayError, match="no tune section"):
        load_sweep(CONFIGS[0].parents[1] / "digits.yaml")


@pytest.mark.parametrize(
    ("tune", "field", "expected"),
    [
        ({"searcher": "optuna"}, "tune.searcher", "Optuna chooses"),
        (
            {"searcher": "grid", "space": {"privacy.steps": {"grid": [4]}}},
            "tune.searcher",
            "a grid is no random draw",
        ),
        ({"scheduler": "asha"}, "tune.scheduler", "early stopping compares"),
    ],
)
def test_private_selection_refuses_what_breaks_its_assumption(
    make_sweep: MakeSweep, tune: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected) as refused:
        draw(make_sweep(**tune))
    assert refused.value.field == field
    assert "compose" in str(refused.value)
    assert draw(make_sweep(**tune, privacy_mode="compose")).budgets.solved


# The budget


@pytest.mark.parametrize(
    ("privacy", "space", "expected"),
    [
        ({}, {"augment.views": {"choice": [1]}}, "too little is fixed"),
        ({"steps": 4}, {"privacy.noise_multiplier": {"choice": [1.0]}}, "too much is fixed"),
        (
            {},
            {"privacy.noise_multiplier": {"choice": [1.0]}, "privacy.steps": {"choice": [4]}},
            "too much is fixed",
        ),
        ({"epsilon": None, "steps": 4}, {"augment.views": {"choice": [1]}}, "equal budget"),
        ({"steps": 4, "search_epsilon": 5.0}, {"augment.views": {"choice": [1]}}, "add both"),
    ],
)
def test_a_budget_that_is_open_or_fixed_twice_is_refused(
    make_sweep: MakeSweep, privacy: dict[str, Any], space: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        draw(make_sweep({"privacy": privacy}, space=space))


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(
    "space",
    [
        # Few steps, so that one more or less is 0.03 of ε.
        {
            "privacy.noise_multiplier": {"log_uniform": [2.0, 5.0]},
            "data.expected_batch_size": {"choice": [512]},
        },
        {"privacy.steps": {"integer": [3, 300]}},
        {"privacy.steps": {"choice": [50]}, "data.expected_batch_size": {"choice": [32, 512]}},
    ],
)
def test_every_trial_spends_the_same(
    make_sweep: MakeSweep, accountant: str, space: dict[str, Any]
) -> None:
    """Within 0.01 below the target and never above, by an accountant asked anew."""
    sweep = make_sweep(
        {"privacy": {"accountant": accountant}}, space=space, num_samples=6, budget_levels=3
    )
    search = draw(sweep)
    assert len(search.budgets.solved) == len(
        budget.solve_budgets(sweep).solved
    )  # private selection: all that could have been drawn
    for point in search.points or []:
        config, plan = search.budgets.trial_at(point)
        sigma, steps = config.privacy.noise_multiplier, config.privacy.steps
        assert sigma is not None
        assert steps is not None
        spent = epsilon_of(plan.accountant, ((sigma, plan.sample_rate, steps),), plan.delta)
        assert 3.0 - 0.01 <= spent <= 3.0
        assert (plan.noise_multiplier, plan.steps) == (sigma, steps)
        given = point.get("privacy.noise_multiplier")
        if given is not None:  # T is whole: σ is lowered by less than a step's worth
            assert given * (1 - 1 / steps) < sigma < given * 1.001
        assert plan.sample_rate == config.data.expected_batch_size / N


def test_each_budget_is_solved_once(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = []
    original = budget.solve_budget

    def count(*arguments: Any, **keywords: Any) -> PrivacyPlan:
        solved.append(arguments)
        return original(*arguments, **keywords)

    monkeypatch.setattr(budget, "solve_budget", count)
    search = draw(make_sweep(num_samples=40, privacy_mode="compose"))
    assert len(search.points or []) == 40
    assert len(solved) == 2  # T = 4 and T = 8


def test_noise_to_batch_holds_what_tan_holds(make_sweep: MakeSweep) -> None:
    """σ/B̄ and T as of the large run; best.yaml is the large run, which spends the budget."""
    sweep = make_sweep(
        {"data": {"expected_batch_size": 512}}, hold="noise_to_batch", search_batch_size=64
    )
    search = draw(sweep)
    for point in search.points or []:
        small, plan = search.budgets.trial_at(point)
        large, large_plan = search.budgets.full_at(point)
        assert small.data.expected_batch_size == plan.expected_batch_size == 64
        assert plan.noise_multiplier / 64 == pytest.approx(large_plan.noise_multiplier / 512)
        assert plan.steps == large_plan.steps == point["privacy.steps"]
        assert plan.epsilon > 3.0 > large_plan.epsilon > 2.99
        assert large.data.expected_batch_size == 512
    assert {rate for _, rate, _ in search.budgets.runs} == {64 / N}
    cost = search_cost(search)  # of the small runs, which is what the search releases
    assert cost.epsilon > max(
        epsilon_of("rdp", (run,), search.budgets.delta) for run in search.budgets.runs
    )
    assert "there a trial spends ε = " in describe_search(search, cost)
    for tune, expected in (
        ({"hold": "noise_to_batch", "search_batch_size": 64}, "smaller than"),
        ({"hold": "noise_to_batch"}, "goes together"),
        ({"search_batch_size": 32}, "goes together"),
    ):
        with pytest.raises(ConfigError, match=expected) as refused:
            draw(make_sweep(**tune))
        assert refused.value.field == "tune.search_batch_size"


# What is drawn, and what it costs


def test_trials_are_drawn_by_the_key(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(num_samples=8)
    first, again = draw(sweep), draw(sweep)
    other = Search.draw(sweep, RunKey.from_seed(6))
    assert first.points == again.points
    assert first.points != other.points


def test_the_number_of_trials_is_random_only_where_that_counts(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(num_samples=8)
    keys = [RunKey.from_seed(i) for i in range(200)]
    counts = [len(Search.draw(sweep, key).points or []) for key in keys]
    assert abs(sum(counts) / 200 - 8) < 0.8  # four standard errors of a Poisson mean
    assert len(set(counts)) > 5
    for mode in ("compose", "public"):
        assert len(draw(make_sweep(num_samples=8, privacy_mode=mode)).points or []) == 8


def test_the_cheaper_distribution_is_the_default(make_sweep: MakeSweep) -> None:
    names = {n: trial_count(make_sweep(num_samples=n).tune).distribution for n in (1, 10, 11, 32)}
    assert names == {1: "poisson", 10: "poisson", 11: "geometric", 32: "geometric"}
    named = make_sweep(num_samples=2, distribution="truncated_negative_binomial", shape=0.7)
    assert trial_count(named.tune) == TrialCount("truncated_negative_binomial", 2.0, 0.7)


def test_a_grid_is_tried_whole(make_sweep: MakeSweep) -> None:
    space = {
        "augment.views": {"grid": [1, 2, 4]},
        "privacy.steps": {"grid": [4, 8]},
        "privacy.max_grad_norm": {"uniform": [1, 2]},
    }
    sweep = make_sweep(space=space, searcher="grid", num_samples=2, privacy_mode="compose")
    points = draw(sweep).points or []
    pairs = Counter((p["augment.views"], p["privacy.steps"]) for p in points)
    assert pairs == {(k, t): 2 for k in (1, 2, 4) for t in (4, 8)}
    assert len({p["privacy.max_grad_norm"] for p in points}) == 12  # drawn for each


def test_a_selection_is_charged_for_what_it_could_have_drawn(make_sweep: MakeSweep) -> None:
    """The cost must not tell which trials were drawn, nor depend on them."""
    space = {"privacy.steps": {"integer": [2, 500]}}
    sweep = make_sweep(space=space, num_samples=1, budget_levels=6)
    searches = [Search.draw(sweep, RunKey.from_seed(seed)) for seed in range(4)]
    assert len({str(search.points) for search in searches}) > 1
    assert {len(search.budgets.runs) for search in searches} == {6}
    assert len({search_cost(search).epsilon for search in searches}) == 1


def test_costs_of_the_three_modes(make_sweep: MakeSweep) -> None:
    public = draw(make_sweep(privacy_mode="public"))
    assert search_cost(public).epsilon == 0.0
    assert 2.99 < search_cost(public, then=public.budgets.full_runs).epsilon <= 3.0

    composed = draw(make_sweep(privacy_mode="compose"))
    released = tuple(composed.budgets.trial_at(point)[1].run for point in composed.points or [])
    cost = search_cost(composed)
    assert cost.epsilon == pytest.approx(epsilon_of("rdp", released, composed.budgets.delta))
    more = search_cost(composed, then=composed.budgets.full_runs).epsilon
    assert more > cost.epsilon > 3.0
    each = [search_cost(composed, then=[run]).epsilon for run in composed.budgets.full_runs]
    assert more == max(each)  # which of them follows is what the search says
    half = [((sigma, rate, steps // 2),) for sigma, rate, steps in released]
    assert search_cost(composed, half).epsilon < cost.epsilon

    adaptive = draw(make_sweep(privacy_mode="compose", searcher="optuna"))
    assert adaptive.points is None
    runs, delta = adaptive.budgets.runs, adaptive.budgets.delta
    assert len(runs) == 2
    cost = search_cost(adaptive, half[:1])  # stopped early: charged whole, as all that may follow
    assert cost.epsilon == adaptive_epsilon(runs, 3, delta)
    assert search_cost(adaptive, half * 2).epsilon == adaptive_epsilon(runs, 6, delta)

    selected = draw(make_sweep(num_samples=8))
    cost = search_cost(selected)
    assert cost.epsilon == selection_epsilon(runs, TrialCount("poisson", 8), delta) > 3.0
    # Whatever the number drawn was, and however few steps were taken.
    assert search_cost(selected, half[:1]).epsilon == cost.epsilon


def test_stopping_early_is_adaptive(make_sweep: MakeSweep) -> None:
    search = draw(make_sweep(privacy_mode="compose", scheduler="asha"))
    runs, delta = search.budgets.runs, search.budgets.delta
    assert search_cost(search).epsilon == adaptive_epsilon(runs, 3, delta)


def test_a_search_never_costs_less_than_a_trial(make_sweep: MakeSweep) -> None:
    """Where ε is small PRV's own error is more than what Rényi accounting loses."""
    sweep = make_sweep(
        {"privacy": {"epsilon": 0.02, "accountant": "prv"}},
        num_samples=1,
        space={"privacy.steps": {"choice": [2]}},
        distribution="geometric",
    )
    search = draw(sweep)
    single = search.budgets.full_at({"privacy.steps": 2})[1].epsilon
    bound = selection_epsilon(search.budgets.runs, TrialCount("geometric", 1), 1e-4)
    assert bound < single == search_cost(search).epsilon


# What it leaves


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
    assert "class=private" in (root / "private/report.html").read_text()
    # What the losers learnt is gone; what they cost is not.
    for index in range(len(points)):
        run = RunDirectory(search.directory.trials / trial_name(index))
        assert run.root.exists("release") == (index == best)
        assert bool(run.checkpoints.names()) == (index == best)
        assert run.read_ledger().charges == points[index]["privacy.steps"]

    assert yaml.safe_load((root / "release/config.yaml").read_text())["name"] == "search"
    statement = json.loads((root / "release/privacy.json").read_text())
    assert "how many trials" in statement["warning"]  # the test's search has a seed
    assert statement["epsilon"] == told["epsilon_of_search"]
    assert statement["search"]["of_this_run_alone"]["epsilon"] < statement["epsilon"]
    assert any("not even their number" in text for text in statement["assumptions"])
    shown = describe_sweep_result(told)
    assert shown.startswith("ε of search   ε = ")
    assert "which is not the cost" in shown
    assert all(f"{a:.4f}" not in shown for a in accuracies if a != max(accuracies))


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
    for part in ("Parallel coordinates", "Views (K)", "Budget", "ε of the search"):
        assert part in page
    assert "<script src=" not in page
    assert "class=private" not in page

    assert evaluate_run(str(root), [])["test_accuracy"] == told["best"]["test_accuracy"]

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
    assert "with search" in describe_result(trained)
    with pytest.raises(RunError, match="is a search"):
        ledger_facts(str(root))
    with pytest.raises(RunError, match="finished search"):
        finish(search, monkeypatch)
    with pytest.raises(RunError, match="finished search"):
        run_sweep(search.sweep, resume=False, console=QUIET)


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
        assert evaluate_run(folder.uri, [])["test_accuracy"] == told["best"]["test_accuracy"]
        kept = [r.root.exists("release") for r in runs_of(search)]
        assert sorted(kept) == [False] * (len(kept) - 1) + [True]


def runs_of(search: Search) -> list[RunDirectory]:
    return [RunDirectory(search.directory.trials / n) for n in search.directory.trials.names()]


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
    paid += [(search.budgets.trial_at(points[i])[1].run,) for i in (1, 2, 3, 6)]
    assert told["epsilon_of_search"] == pytest.approx(search_cost(search, paid).epsilon)
    shown = describe_sweep_result(told)
    assert "failed (3 starts)" in shown
    assert "no memory" in sweep_page(told)
    assert "its files are lost" in sweep_page(told)


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


def test_a_trial_that_was_gone_on_with_elsewhere_is_not_published(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound of a selection is on the plans; more steps on the side would break it."""
    search = begin(make_sweep(num_samples=4))
    for index in range(len(search.points or [])):
        run = run_trial(search, index)
    ledger = run.write_ledger("aside")
    ledger.amend_plan({**ledger.plan, "steps": ledger.plan["steps"] + 1})
    body = {"step": 99, "incarnation": 0, "digest": "ab", "noise_multiplier": 1.0}
    ledger.charge(Charge(**body, max_grad_norm=1.0, sample_rate=0.5))
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


@pytest.mark.parametrize("crash_at", ["sweep_page", "publish_search", "forget_losers"])
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
    # By now the last trial would do best, were it asked again.
    run = run_trial(search, len(points) - 1)
    run.write_result({**run.read_result(), "test_accuracy": 1.0})
    told = finish(search, monkeypatch)
    assert told["best"] == decided["best"] != points[-1]
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
    assert describe_sweep_result(told).startswith("ε of search   0: you declare the data public")


def test_the_loss_may_be_the_metric(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small is good; a loss that is no number is never the best."""
    search = begin(make_sweep(privacy_mode="compose", metric="test_loss"))
    losses = []
    for index in range(3):
        run = run_trial(search, index)
        losses.append(run.read_result()["test_loss"])
    assert all(loss > 0 for loss in losses)
    least = losses.index(min(losses))
    diverged = RunDirectory(search.directory.trials / trial_name(least))
    diverged.write_result({**diverged.read_result(), "test_loss": None})
    told = finish(search, monkeypatch)
    assert told["best"]["test_loss"] == sorted(losses)[1]
    assert told["mode"] == "min"


def test_two_cannot_search_at_once(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    monkeypatch.setattr(sweep_module, "_LOCK_WAIT_S", 0.0)
    lock = WriterLock(search.directory.private, "other")
    try:
        with pytest.raises(DpRayError, match="process"):
            finish(search, monkeypatch)
    finally:
        lock.release()


def test_no_trial_at_all_is_an_outcome(make_sweep: MakeSweep) -> None:
    """The Poisson distribution may say 0; that, too, must not depend on anything private."""
    sweep = make_sweep({"seed": 3}, num_samples=1)
    seed = next(s for s in range(50) if not Search.draw(sweep, RunKey.from_seed(s)).points)
    told = run_sweep(make_sweep({"seed": seed}, num_samples=1), resume=False, console=QUIET)
    assert (told["status"], told["best"]) == ("finished", None)
    assert told["epsilon_of_search"] > 3.0
    assert "random number of trials was 0" in describe_sweep_result(told)


def test_a_search_is_taken_up_as_it_was(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    with pytest.raises(RunError, match="continue it with --resume"):
        run_sweep(search.sweep, resume=False, console=QUIET)
    for changed, field in (
        (make_sweep(privacy_mode="public"), "tune.privacy_mode"),
        (make_sweep(privacy_mode="compose", num_samples=9), "tune.num_samples"),
        (make_sweep(privacy_mode="compose", max_failures=9), "tune.max_failures"),
        (make_sweep({"privacy": {"epsilon": 8.0}}, privacy_mode="compose"), "privacy.epsilon"),
        (make_sweep({"optimizer": {"lr": 9.0}}, privacy_mode="compose"), "optimizer.lr"),
    ):
        with pytest.raises(ConfigError, match="was started with") as refused:
            run_sweep(changed, resume=True, console=QUIET)
        assert refused.value.field == field
    seen: list[Search] = []

    def stop(found: Search, _example: Any, *, break_lock: bool) -> bool:
        assert not break_lock
        seen.append(found)
        return False

    monkeypatch.setattr("dp_ray.cluster.tuner.tune_on_ray", stop)
    again = make_sweep({"cluster": {"cpus_per_worker": 2}}, privacy_mode="compose")
    told = run_sweep(again, resume=True, console=QUIET)
    assert told["status"] == "stopped"
    assert "--resume" in describe_sweep_result(told)
    assert seen[0].points == search.points
    assert seen[0].budgets.solved == search.budgets.solved
    with pytest.raises(RunError, match="holds no search"):
        run_sweep(replace(again, name="other"), resume=True, console=QUIET)


def test_a_search_that_was_cut_off_before_it_began_is_begun_anew(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    directory = SweepDirectory.of(sweep)
    directory.private.write("sweep.yaml", b"half")
    directory.lay_out()
    directory.check_free()
    directory.private.write("config.yaml", b"a run's")
    with pytest.raises(RunError, match="something else"):
        directory.check_free()


def test_seeds_of_trials_differ_and_repeat(make_sweep: MakeSweep) -> None:
    """Two trials at one point must not share their noise."""
    search = begin(make_sweep())
    point = {"augment.views": 1, "privacy.steps": 4, "privacy.max_grad_norm": 1.0}
    seeds = [search.trial(name, point)[0].seed for name in ("a", "b", "a")]
    assert seeds[0] == seeds[2] != seeds[1]
    unseeded = replace(search, sweep=make_sweep({"seed": None}))
    budgets = replace(search.budgets, sweep=unseeded.sweep)
    assert replace(unseeded, budgets=budgets).trial("a", point)[0].seed is None


def test_trials_are_checked_before_any_is_started(make_sweep: MakeSweep) -> None:
    sweep = make_sweep({"data": {"root": "/nowhere"}}, privacy_mode="compose")
    too_large = make_sweep(
        {"train": {"microbatch_size": 1_000_000}},
        space={"augment.views": {"choice": [1000]}, "privacy.steps": {"choice": [4]}},
        privacy_mode="compose",
    )
    with pytest.raises(ConfigError, match="microbatch_size"):
        plan_sweep(too_large, QUIET)
    unknown = make_sweep(
        space={"optimizer.name": {"choice": ["SGB"]}, "privacy.steps": {"choice": [4]}},
        privacy_mode="compose",
    )
    with pytest.raises(ConfigError, match=r"optimizer\.name"):
        plan_sweep(unknown, QUIET)
    plan_sweep(sweep, QUIET)


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
    with pytest.raises(ConfigError, match="9 × 1 CPUs"):
        trials_at_once(tune, ClusterConfig(num_workers=9), has)
    joined = ClusterConfig(num_workers=9, address="head:6379")
    assert trials_at_once(tune, joined, has) == 1  # a cluster may grow
    assert threads_of_worker(joined, 1) == 1
    assert threads_of_worker(ClusterConfig(cpus_per_worker=4), 1000) == 4


def test_progress_shows_trials_the_best_and_the_cost(make_sweep: MakeSweep) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    progress = SweepProgress(search, 5.25, QUIET)
    assert progress.lines()[0].startswith("starting Ray")
    points = search.points or []
    run = RunDirectory(search.directory.trials / trial_name(1))
    TrialRecord(points[1], attempts=1).write(run)
    run.private.write(
        "progress.json",
        json.dumps({"step": 2, "test_accuracy": 0.25, "test_loss": 1.0}).encode(),
    )
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_configurations_load_and_say_what_they_cost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "_check_trials", lambda _search: None)
    sweep = load_sweep(path, ["privacy.accountant=rdp", "tune.budget_levels=2"])
    shown = io.StringIO()
    search, _ = plan_sweep(sweep, Console(file=shown))
    cost = search_cost(search)
    assert math.isfinite(cost.epsilon)
    assert "ε of search" in describe_search(search, cost)
