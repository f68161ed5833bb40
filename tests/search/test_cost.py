"""Equal budgets, what is drawn, and what a search costs."""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.searches import MakeSweep, N, draw
from helpers.support import key_of
from rich.console import Console

from dp_ray.api import tune as sweep_module
from dp_ray.api.tune import plan_sweep
from dp_ray.config.search import load_sweep
from dp_ray.errors import ConfigError
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.privacy.selection import TrialCount, adaptive_epsilon, selection_epsilon
from dp_ray.reporting.run_progress import TerminalProgress
from dp_ray.reporting.search import describe_search
from dp_ray.search import budget
from dp_ray.search.cost import search_cost
from dp_ray.search.search import Search, trial_count

CONFIGS = sorted((Path(__file__).parents[2] / "configs/sweeps").glob("*.yaml"))


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


@pytest.mark.parametrize("accountant", ["rdp", pytest.param("prv", marks=pytest.mark.slow)])
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
    assert {rate for run in search.budgets.runs for _, rate, _ in run} == {64 / N}
    cost = search_cost(search)  # of the small runs, which is what the search releases
    assert cost.epsilon > max(
        epsilon_of("rdp", run, search.budgets.delta) for run in search.budgets.runs
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


def test_trials_are_drawn_by_the_key(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(num_samples=8)
    first, again = draw(sweep), draw(sweep)
    other = Search.draw(sweep, key_of(6))
    assert first.points == again.points
    assert first.points != other.points


def test_the_number_of_trials_is_random_only_where_that_counts(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(num_samples=8)
    keys = [key_of(i) for i in range(200)]
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
    searches = [Search.draw(sweep, key_of(seed)) for seed in range(4)]
    assert len({str(search.points) for search in searches}) > 1
    assert {len(search.budgets.runs) for search in searches} == {6}
    assert len({search_cost(search).epsilon for search in searches}) == 1


def test_costs_of_the_three_modes(make_sweep: MakeSweep) -> None:
    public = draw(make_sweep(privacy_mode="public"))
    assert search_cost(public).epsilon == 0.0
    assert 2.99 < search_cost(public, then=public.budgets.full_runs).epsilon <= 3.0

    composed = draw(make_sweep(privacy_mode="compose"))
    released = tuple(
        entry
        for point in composed.points or []
        for entry in composed.budgets.trial_at(point)[1].releases
    )
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_configurations_load_and_say_what_they_cost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "_check_trials", lambda _search: None)
    sweep = load_sweep(path, ["privacy.accountant=rdp", "tune.budget_levels=2"])
    shown = io.StringIO()
    search, _ = plan_sweep(sweep, [TerminalProgress(Console(file=shown))])
    cost = search_cost(search)
    assert math.isfinite(cost.epsilon)
    assert "ε of search" in describe_search(search, cost)
