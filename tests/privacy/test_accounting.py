"""ε against published and independently computed figures, and the solvers built on it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
from helpers.plans import plan_at_rate
from opacus.accountants import PRVAccountant, RDPAccountant

from dp_ray.privacy import accounting
from dp_ray.privacy.accounting import (
    AccountantName,
    BudgetError,
    epsilon_curve,
    epsilon_of,
    running_maximum,
    solve_noise_multiplier,
    solve_steps,
)
from dp_ray.privacy.history import History


def cost(accountant: str, sigma: float, rate: float, steps: int, delta: float) -> float:
    return epsilon_of(accountant, ((sigma, rate, steps),), delta)  # type: ignore[arg-type]


def test_a_curve_is_the_accountant_asked_at_each_delta() -> None:
    history, deltas = ((2.0, 0.1, 20), (1.5, 0.1, 5)), (1e-7, 1e-4, 1e-2)
    expected = [epsilon_of("pld", history, delta) for delta in deltas]
    assert list(epsilon_curve(history, deltas)) == expected == sorted(expected, reverse=True)
    assert epsilon_curve(((0.0, 0.1, 3),), deltas) == (math.inf,) * 3
    assert epsilon_curve((), deltas) == (0.0,) * 3


@pytest.mark.parametrize(
    ("accountant", "sigma", "rate", "steps", "delta", "expected", "digits"),
    [
        ("rdp", 1.5, 0.04, 2250, 1e-5, 7.32911, 5),
        ("prv", 1.5, 0.04, 2250, 1e-5, 6.779, 3),
        # Gopi et al. 2021, at δ = 1e-6
        ("prv", 0.8, 0.001, 100, 1e-6, 0.270403, 6),
        ("prv", 1.5, 0.05, 1000, 1e-6, 6.209969, 6),
        ("prv", 2.0, 0.05, 1000, 1e-6, 4.172800, 6),
        ("prv", 3.0, 0.2, 100, 1e-6, 3.381221, 6),
        ("prv", 1.5, 0.001, 20000, 1e-6, 0.437005, 6),
    ],
)
def test_known_figures(
    accountant: str,
    sigma: float,
    rate: float,
    steps: int,
    delta: float,
    expected: float,
    digits: int,
) -> None:
    found = cost(accountant, sigma, rate, steps, delta)
    assert round(found, digits) == pytest.approx(expected, abs=0.6 * 10**-digits)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"), [(1.5, 0.04, 2250), (4.5, 0.36, 100), (2.0, 0.05, 1000)]
)
def test_accountants_agree(sigma: float, rate: float, steps: int) -> None:
    """PLD, written by others, lies within PRV's error below it; RDP is looser than both."""
    prv, pld, rdp = (cost(name, sigma, rate, steps, 1e-5) for name in ("prv", "pld", "rdp"))
    assert prv - 0.03 < pld <= prv < rdp


@pytest.mark.parametrize(
    "history",
    [
        ((4.5, 0.356, 100),),
        ((1.0, 0.01, 1000),),
        ((2.0, 0.1, 50), (1.5, 0.2, 30)),
        ((1.0, 1.0, 5),),
    ],
)
def test_prv_is_what_opacus_says_to_the_last_bit(history: History) -> None:
    """Its grid is found from divergences that are kept."""
    opacus = PRVAccountant()
    opacus.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the logarithm of zero, at q = 1
        expected = opacus.get_epsilon(1e-5)
    assert epsilon_of("prv", history, 1e-5) == expected


def test_rdp_is_what_opacus_says_to_the_last_bit() -> None:
    """The divergences of one step are kept, and Opacus's accountant computes them each time."""
    history = [(1.5, 0.04, 300), (1.2, 0.04, 50), (0.9, 1.0, 2)]
    opacus = RDPAccountant()
    for part in (history[:1], history[1:], history):
        opacus.history = part
        assert epsilon_of("rdp", tuple(part), 1e-5) == opacus.get_epsilon(1e-5)


def test_limits() -> None:
    assert cost("prv", 1.0, 0.1, 0, 1e-5) == 0.0
    assert cost("rdp", 0.0, 0.1, 10, 1e-5) == math.inf


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld"])
@pytest.mark.parametrize(("target", "rate", "steps"), [(3.0, 0.35, 100), (0.5, 0.01, 500)])
def test_noise_meets_the_budget_and_is_not_wasted(
    accountant: str, target: float, rate: float, steps: int
) -> None:
    sigma = solve_noise_multiplier(
        accountant,  # type: ignore[arg-type]
        plan_at_rate(rate),
        target=target,
        steps=steps,
    )
    spent = cost(accountant, sigma, rate, steps, 1e-5)
    assert target - 0.01 <= spent <= target


def test_budget_below_the_reach_of_rdp() -> None:
    """RDP has no order for ε = 0.1 at δ = 1e-5; the search must do without it."""
    sigma = solve_noise_multiplier("prv", plan_at_rate(0.01), target=0.1, steps=100)
    assert 0.09 < cost("prv", sigma, 0.01, 100, 1e-5) <= 0.1


def test_steps_are_the_most_that_fit() -> None:
    steps = solve_steps("prv", plan_at_rate(0.05), target=2.0, noise_multiplier=1.5)
    assert cost("prv", 1.5, 0.05, steps, 1e-5) <= 2.0 < cost("prv", 1.5, 0.05, steps + 1, 1e-5)


def test_impossible_budgets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_NOISE_MULTIPLIER", 10.0)
    with pytest.raises(BudgetError, match="single step"):
        solve_steps("rdp", plan_at_rate(0.5), target=0.01, noise_multiplier=0.3)
    with pytest.raises(BudgetError, match="no noise multiplier"):
        solve_noise_multiplier("rdp", plan_at_rate(0.5), target=0.01, steps=100)


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld"])
def test_an_accountant_answers_at_the_edges(accountant: AccountantName) -> None:
    """Of every δ, σ and q that a configuration may have: a bound, which may be infinite."""
    for delta in (1e-5, 1e-300, 1e-310, 5e-324):
        for sigma, rate, steps in ((0.3, 1e-6, 1), (1000.0, 1.0, 10**6), (1e6, 1e-6, 10**7)):
            if delta == 1e-5 and accountant != "rdp":
                continue  # seconds; the other tests' business
            epsilon = epsilon_of(accountant, ((sigma, rate, steps),), delta)
            assert epsilon >= 0
            assert accountant != "rdp" or math.isfinite(epsilon)


@pytest.mark.parametrize(
    "answer", [math.nan, -0.5, ZeroDivisionError(), ValueError(), MemoryError(), RuntimeError()]
)
def test_an_accountant_that_fails_says_infinity(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> float:
        if isinstance(answer, Exception):
            raise answer
        return float(answer)

    monkeypatch.setattr("dp_ray.privacy.accounting._ask", ask)
    epsilon_of.cache_clear()
    found = epsilon_of("rdp", ((2.0, 0.125, 3),), 1e-5)
    epsilon_of.cache_clear()
    assert found == (0.0 if answer == -0.5 else math.inf)


def test_no_more_steps_ever_cost_less() -> None:
    assert running_maximum([1.0, 1.2, 1.19, 1.3, math.inf]) == [1.0, 1.2, 1.2, 1.3, math.inf]
