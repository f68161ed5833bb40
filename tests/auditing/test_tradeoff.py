"""Guesses held against all of a ledger's ε and δ: what is refuted, and what must not be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from dp_ray.auditing.bounds import audit_one_run
from dp_ray.auditing.tradeoff import (
    Curve,
    audit_history,
    can_refute,
    is_possible,
    numbers_of_guesses,
    scaled,
)
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.history import History

GAUSSIAN: History = ((2.0, 1.0, 1),)


def play(
    rng: np.random.Generator, canaries: int, history: History, *, signal: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log likelihood ratios of sums that each hold one canary, or not; and the coins."""
    included, scores = rng.random(canaries) < 0.5, np.zeros(canaries)
    for sigma, rate, count in history:
        for _ in range(count):
            drawn = included & (rng.random(canaries) < rate)
            x = rng.normal(0, sigma, canaries) + signal * drawn
            scores += np.log1p(rate * np.expm1((2 * x - 1) / (2 * sigma**2)))
    return scores, included


@pytest.fixture(scope="module")
def gaussian() -> Curve:
    return Curve.of(GAUSSIAN)


def test_curve_is_the_gaussians(gaussian: Curve) -> None:
    mu, epsilons = 0.5, gaussian.epsilons
    tail = np.exp(epsilons) * stats.norm.cdf(-epsilons / mu - mu / 2)
    deltas = stats.norm.cdf(-epsilons / mu + mu / 2) - tail
    assert gaussian.deltas == pytest.approx(deltas, abs=2e-4)
    assert (gaussian.deltas >= deltas - 1e-12).all()  # never too good a promise
    for probability in (0.001, 0.05, 0.3, 0.7, 0.99):
        exact = stats.norm.cdf(stats.norm.ppf(probability) - mu)
        assert gaussian.least(probability) == pytest.approx(exact, abs=1e-3)
        assert gaussian.least(probability) <= exact
    assert Curve.of(()).least(0.4) == pytest.approx(0.4)


def test_curve_of_several_kinds_of_sums() -> None:
    history: History = ((1.0, 0.1, 5), (2.0, 0.3, 4))
    curve = Curve.of(history)
    for delta in (1e-2, 1e-4):
        epsilon = epsilon_of("pld", history, delta)
        assert np.interp(epsilon, curve.epsilons, curve.deltas) == pytest.approx(delta, rel=0.1)


def largest_tail(curve: Curve, canaries: int, guesses: int, right: int) -> float:
    """Most that P[at least so many right] can be: a linear program over all distributions."""
    i = np.arange(1, guesses + 1)
    rows, bounds = [], []
    for j in range(1, guesses + 1):
        with_it, without = np.zeros(guesses + 1), np.zeros(guesses + 1)
        with_it[j:] = i[j - 1 :] / canaries
        without[j - 1 : guesses] = (guesses - i[j - 1 :] + 1) / canaries
        for epsilon, delta in zip(curve.epsilons, curve.deltas, strict=True):
            rows += [with_it - math.exp(epsilon) * without]
            rows += [with_it - math.exp(-epsilon) * without]
            bounds += [delta, 1 - math.exp(-epsilon) * (1 - delta)]
    tail = np.zeros(guesses + 1)
    tail[right:] = -1
    found = optimize.linprog(tail, rows, bounds, np.ones((1, guesses + 1)), [1], (0, 1))
    return float(-found.fun)


@pytest.mark.parametrize(("canaries", "guesses"), [(6, 6), (12, 6), (40, 8)])
def test_what_is_impossible_is_so_for_every_distribution(
    gaussian: Curve, canaries: int, guesses: int
) -> None:
    """And the other way round, but for a hair: the recursion loses nothing."""
    coarse = Curve(gaussian.epsilons[::12], gaussian.deltas[::12])
    for right in range(guesses // 2 + 1, guesses + 1):
        most = largest_tail(coarse, canaries, guesses, right)
        tries = {"significance": most * 1.01} if most < 0.99 else None
        if tries is not None:
            assert not is_possible(coarse, canaries, guesses, right, **tries)
        assert is_possible(coarse, canaries, guesses, right, significance=most * 0.99)


@pytest.mark.parametrize("history", [GAUSSIAN, ((1.0, 0.1, 20),)], ids=["whole", "sampled"])
def test_a_true_ledger_is_refuted_no_more_often_than_said(history: History) -> None:
    rng, canaries = np.random.default_rng(1), 600
    curve, pairs = Curve.of(history), numbers_of_guesses(600)
    refuted = 0
    for _ in range(150):
        scores, included = play(rng, canaries, history)
        falling = included[np.argsort(-scores)]
        for i, o in pairs:
            right = int(falling[:i].sum() + (~falling[canaries - o :]).sum())
            if not is_possible(curve, canaries, i + o, right, significance=0.3 / len(pairs)):
                refuted += 1
                break
    assert refuted <= stats.binom.ppf(0.999, 150, 0.3)


def test_bound_is_near_and_below_the_truth_and_above_that_of_the_pair() -> None:
    rng = np.random.default_rng(2)
    scores, included = play(rng, 4000, GAUSSIAN)
    true = epsilon_of("pld", GAUSSIAN, 1e-4)
    found = audit_history(scores, included, GAUSSIAN, delta=1e-4)
    assert not found.refuted
    assert 0.35 * true < found.epsilon_lower < true
    assert found.epsilon_lower > 1.5 * audit_one_run(scores, included, delta=1e-4).epsilon_lower


@pytest.mark.parametrize("signal", [2.0, 4.0])
def test_more_signal_than_the_ledger_says_is_refuted(signal: float) -> None:
    scores, included = play(np.random.default_rng(3), 6000, GAUSSIAN, signal=signal)
    claimed = epsilon_of("pld", GAUSSIAN, 1e-4)
    found = audit_history(scores, included, GAUSSIAN, delta=1e-4)
    assert found.refuted
    assert found.epsilon_lower > claimed
    truth = scaled(GAUSSIAN, 1 / signal)
    again = audit_history(scores, included, truth, delta=1e-4)
    assert not again.refuted
    assert again.epsilon_lower < epsilon_of("pld", truth, 1e-4)


def test_scores_that_say_nothing_give_no_bound() -> None:
    included = np.arange(600) % 2 == 0
    found = audit_history(np.zeros(600), included, GAUSSIAN, delta=1e-4)
    assert (found.epsilon_lower, found.refuted) == (0, False)


def test_few_canaries_cannot_refute() -> None:
    assert not can_refute(GAUSSIAN, 8, significance=0.05)
    assert can_refute(GAUSSIAN, 800, significance=0.05)
    for canaries in (1, 2, 9, 4000):
        assert all(0 < sum(pair) <= canaries for pair in numbers_of_guesses(canaries))
