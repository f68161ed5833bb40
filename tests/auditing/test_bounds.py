"""Lower bounds on ε: against the paper's formula and figures, by enumeration and by simulation."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dp_ray.auditing.bounds import (
    Audit,
    audit_one_run,
    audit_runs,
    numbers_of_guesses,
    one_run_epsilon,
    one_run_probability,
    rate_at_least,
    rate_at_most,
    refutes,
)

Scores = tuple[NDArray[np.float64], NDArray[np.bool_]]

SIGNIFICANCE = 0.05
SIMULATIONS = 400
MOST_MISSES = int(stats.binom.isf(1e-4, SIMULATIONS, SIGNIFICANCE))
"""A bound that keeps its confidence has more misses once in 10,000 tries."""


def by_the_formula(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Corollary 5.4, term by term."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    nearly = [sum(mass[v - i : v]) / i for i in range(1, v + 1)]
    return min(1.0, sum(mass[v:]) + 2 * m * delta * max(nearly, default=0.0))


@pytest.mark.parametrize("delta", [0.0, 1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 6.0])
def test_probability_is_the_formula(epsilon: float, delta: float) -> None:
    for r in (0, 1, 2, 7, 40):
        for v in range(r + 1):
            found = one_run_probability(50, r, v, epsilon=epsilon, delta=delta)
            assert found == pytest.approx(by_the_formula(50, r, v, epsilon, delta), rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "printed"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_figures_of_the_paper(m: int, r: int, v: int, delta: float, printed: float) -> None:
    """Appendix D and § 7 of arXiv 2305.08846, to the last digit printed there."""
    found = one_run_epsilon(m, r, v, delta=delta, significance=0.05)
    assert found == pytest.approx(printed, abs=1e-3)


def quantile_scores(shift: float) -> Scores:
    """10,000 members and as many others, at the quantiles of N(shift, 1) and N(0, 1)."""
    others = stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)
    return np.concatenate([others + shift, others]), np.arange(20_000) < 10_000


def corners(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(false, true) positives of the thresholds at the corners of the hull of the ROC curve."""
    falling = included[np.argsort(-scores, kind="stable")]
    curve = [(0, 0), *zip(np.cumsum(~falling).tolist(), np.cumsum(falling).tolist(), strict=True)]
    hull: list[tuple[int, int]] = []
    for x, y in curve:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) < (x - x0) * (y1 - y0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.0, 0.0), (1.0, 1.13346), (2.0, 2.311945), (4.0, 4.395568)]
)
def test_figures_of_the_design(shift: float, expected: float) -> None:
    """By the protocol of the library that they come from (jax_privacy's test of its auditor).

    It guesses "in" alone, and shares the significance among the corners of the ROC hull. Those were
    found on the same scores, so this checks arithmetic. Our own list is fixed beforehand, and
    shorter, which tells more.
    """
    scores, included = quantile_scores(shift)
    guesses = [(false + true, 0) for false, true in corners(scores, included)]
    found = audit_one_run(scores, included, delta=1e-6, guesses=guesses)
    assert found.epsilon_lower == pytest.approx(expected, rel=1e-6, abs=1e-12)
    ours = audit_one_run(scores, included, delta=1e-6)
    true = get_epsilon_gaussian(1 / shift, 1e-6) if shift else 0.0
    assert found.epsilon_lower <= ours.epsilon_lower <= true


@pytest.mark.parametrize("delta", [0.0, 0.02])
def test_bound_holds_of_all_outcomes_of_a_mechanism(delta: float) -> None:
    """Randomised response of 6 coins, which with probability δ publishes them all instead."""
    epsilon, m = 1.0, 6
    keeps = 1 / (1 + math.exp(-epsilon))
    for r in (2, 6):
        chances = np.zeros(r + 1)  # of each number of right guesses, the last r canaries guessed
        for flips in itertools.product([0, 1], repeat=m):
            chance = math.prod(1 - keeps if flip else keeps for flip in flips)
            chances[r - sum(flips[m - r :])] += (1 - delta) * chance
        chances[r] += delta
        for v in range(r + 1):
            bound = one_run_probability(m, r, v, epsilon=epsilon, delta=delta)
            assert chances[v:].sum() <= bound * (1 + 1e-12)
            if delta == 0:  # nothing is lost
                assert chances[v:].sum() == pytest.approx(bound)
            elif v:  # and without δ it would not hold
                assert chances[v:].sum() > one_run_probability(m, r, v, epsilon=epsilon, delta=0)


def randomised_response(
    rng: np.random.Generator, m: int, epsilon: float, delta: float = 0.0
) -> Scores:
    """Exactly (ε, δ)-DP for each coin: a bit kept with its probability, or with δ the coin."""
    included = rng.random(m) < 0.5
    keeps = rng.random(m) < 1 / (1 + math.exp(-epsilon))
    leaks = rng.random(m) < delta
    bits = np.where(included == (keeps | leaks), 1.0, -1.0)
    # Ties are broken by chance, but what leaked stands out.
    return bits * (1 + leaks) + rng.uniform(-0.1, 0.1, m), included


@pytest.mark.parametrize("delta", [0.0, 1e-4])
def test_one_run_keeps_its_confidence(delta: float) -> None:
    rng, epsilon, m = np.random.default_rng(1), 1.0, 300
    found = [
        audit_one_run(*randomised_response(rng, m, epsilon, delta), delta=delta, guesses=guesses)
        for _ in range(SIMULATIONS)
        for guesses in (None, [(m // 2, m // 2)])
    ]
    assert all(audit.confidence == 0.95 and audit.delta == delta for audit in found)
    for of_a_kind in (found[::2], found[1::2]):
        assert sum(audit.epsilon_lower > epsilon for audit in of_a_kind) <= MOST_MISSES
    # Not by being silent.
    assert np.median([audit.epsilon_lower for audit in found[1::2]]) > 0.7


@pytest.mark.parametrize("delta", [0.0, 1e-7])
def test_one_run_is_tight_with_many_canaries(delta: float) -> None:
    m = 100_000
    scores, included = randomised_response(np.random.default_rng(2), m, 2.0, delta)
    found = audit_one_run(scores, included, delta=delta, guesses=[(m // 2, m // 2)])
    assert 1.93 < found.epsilon_lower < 2.0
    assert found.guesses == m
    assert found.right == np.sum((scores > np.median(scores)) == included)


def test_what_leaks_with_delta_refutes_only_a_claim_without() -> None:
    scores, included = randomised_response(np.random.default_rng(3), 2000, 0.5, 0.02)
    pure = audit_one_run(scores, included, delta=0.0, guesses=[(8, 8)])
    assert pure.right == 16
    assert refutes(pure, epsilon=0.5, delta=0.0)
    assert not refutes(audit_one_run(scores, included, delta=0.02), epsilon=0.5, delta=0.02)


def test_a_false_claim_is_refuted_and_a_true_one_is_not() -> None:
    scores, included = randomised_response(np.random.default_rng(4), 2000, 2.0)
    audit = audit_one_run(scores, included, delta=1e-9)
    assert refutes(audit, epsilon=1.0, delta=1e-9)
    assert refutes(audit, epsilon=1.0, delta=0.0)
    assert not refutes(audit, epsilon=2.0, delta=1e-9)
    assert not refutes(audit, epsilon=audit.epsilon_lower, delta=1e-9)
    with pytest.raises(ValueError, match="above the audit's"):
        refutes(audit, epsilon=1.0, delta=1e-6)


def test_many_attacks_on_one_run_must_share_the_significance() -> None:
    """Each number of guesses from 1 to 60 a side, with and without sharing, where ε is 0.3."""
    rng, epsilon, m = np.random.default_rng(5), 0.3, 120
    guesses = [(k, k) for k in range(1, 61)]

    @cache
    def probability(number: int, right: int) -> float:
        return one_run_probability(m, number, right, epsilon=epsilon, delta=0.0)

    alone = shared = 0
    for run in range(SIMULATIONS):
        scores, included = randomised_response(rng, m, epsilon)
        falling = included[np.argsort(-scores)]
        right = np.cumsum(falling) + np.cumsum(~falling[::-1])
        least = min(probability(2 * k, int(right[k - 1])) for k in range(1, 61))
        alone += least < SIGNIFICANCE
        shared += least < SIGNIFICANCE / 60
        if run < 40:  # the same by the audit itself
            audit = audit_one_run(scores, included, delta=0.0, guesses=guesses)
            assert (audit.epsilon_lower > epsilon) == (least < SIGNIFICANCE / 60)
    assert shared <= MOST_MISSES < alone


def test_numbers_of_guesses_depend_on_nothing_but_m() -> None:
    assert numbers_of_guesses(40) == [(20, 20), (20, 0), (10, 10), (10, 0)]
    for m in range(1, 200):
        assert all(0 <= sum(pair) <= m for pair in numbers_of_guesses(m))


def test_best_attack_is_found_and_reported() -> None:
    """Each attack of the list by itself at its share gives at most what the whole gives."""
    scores, included = randomised_response(np.random.default_rng(6), 1000, 1.5)
    found = audit_one_run(scores, included, delta=1e-6)
    pairs, falling = numbers_of_guesses(1000), np.argsort(-scores)
    singly = {
        one_run_epsilon(
            1000,
            i + o,
            int(included[falling[:i]].sum() + (~included[falling[1000 - o :]]).sum()),
            delta=1e-6,
            significance=SIGNIFICANCE / len(pairs),
        ): i + o
        for i, o in pairs
    }
    assert found.epsilon_lower == pytest.approx(max(singly))
    assert found.guesses == singly[max(singly)]


def test_nothing_learnt_is_zero_whatever_the_order_of_equal_scores() -> None:
    for included in (np.arange(500) < 250, np.arange(500) >= 250):
        for scores in (np.zeros(500), np.full(500, np.inf)):
            for guesses in (None, [(250, 250)], [(250, 0)], [(0, 250)]):
                audit = audit_one_run(scores, included, delta=0.0, guesses=guesses)
                assert (audit.epsilon_lower, audit.right) == (0, 0)
    for scores in (np.zeros(40), np.arange(40.0)):
        assert audit_runs(scores, scores, delta=0.0).epsilon_lower == 0
    # But scores that tell all say as much as so many coins can: all right has q^m = 0.05.
    whole = audit_one_run(included, included, delta=0.0, guesses=[(250, 250)])
    assert whole.epsilon_lower == pytest.approx(-math.log(0.05 ** (-1 / 500) - 1))


def test_large_numbers_neither_overflow_nor_lose_digits() -> None:
    m = 100_000
    for r in (1000, m):
        found = one_run_epsilon(m, r, r, delta=0.0, significance=0.05)
        assert found == pytest.approx(-math.log(math.expm1(-math.log(0.05) / r)), rel=1e-9)
    assert one_run_epsilon(m, m, m // 2, delta=1e-9, significance=0.05) == 0
    assert 0 < one_run_probability(m, m, m, epsilon=700.0, delta=1e-9) <= 1
    assert one_run_probability(m, m, m, epsilon=0.0, delta=0.0) == 0


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_more_right_guesses_never_say_less(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 300))
    r = data.draw(st.integers(1, m))
    v = data.draw(st.integers(0, r - 1))
    delta = data.draw(st.sampled_from([0.0, 1e-9, 1e-5, 1e-3, 0.1]))
    significance = data.draw(st.sampled_from([1e-6, 0.01, 0.05, 0.4]))
    found = one_run_epsilon(m, r, v, delta=delta, significance=significance)
    slack = 1e-8
    for other in (
        one_run_epsilon(m, r, v + 1, delta=delta, significance=significance),
        one_run_epsilon(m, r, v, delta=delta, significance=min(0.49, 2 * significance)),
        one_run_epsilon(m, r, v, delta=delta / 2, significance=significance),
    ):
        assert 0 <= found <= other + slack


@pytest.mark.parametrize("trials", [1, 7, 500])
@pytest.mark.parametrize("significance", [0.05, 1e-4])
def test_rates_are_clopper_and_pearsons(trials: int, significance: float) -> None:
    for hits in sorted({0, 1, trials // 3, trials - 1, trials}):
        test = stats.binomtest(hits, trials)
        both = test.proportion_ci(confidence_level=1 - 2 * significance, method="exact")
        assert rate_at_least(hits, trials, significance) == pytest.approx(both.low, rel=1e-9)
        assert rate_at_most(hits, trials, significance) == pytest.approx(both.high, rel=1e-9)


def test_one_threshold_by_hand() -> None:
    """40 of 100 with, 2 of 80 without are above; and the mirrored attack, guessing "without"."""
    scores = np.array([1.0] * 40 + [0.0] * 60), np.array([1.0] * 2 + [0.0] * 78)
    t = stats.beta.ppf(0.025, 40, 61)
    f = stats.beta.ppf(0.975, 3, 78)
    found = audit_runs(*scores, delta=0.01, thresholds=[0.5])
    assert found == Audit(pytest.approx(math.log((t - 0.01) / f)), 0.95, 0.01, 180, 118)
    mirrored = audit_runs(-scores[1], -scores[0], delta=0.01, thresholds=[-0.5])
    assert mirrored.epsilon_lower == pytest.approx(found.epsilon_lower)
    shared = audit_runs(*scores, delta=0.01, thresholds=[0.5, 7.0])
    alone = audit_runs(*scores, delta=0.01, thresholds=[0.5], significance=0.025)
    assert shared.epsilon_lower == pytest.approx(alone.epsilon_lower)


def test_by_default_ranks_among_the_runs_without_are_the_thresholds() -> None:
    """Of 8 there are 4, 2, 1 and none above."""
    share = 0.05 / 4 / 2
    t = stats.beta.ppf(share, 100, 1)
    without = np.arange(8.0)
    for score, above in ((9.0, 0), (6.5, 1), (5.5, 2), (4.0, 4)):  # of all 100 with it
        f = stats.beta.isf(share, above + 1, 8 - above)
        expected = math.log(max(t / f, (1 - f) / (1 - t)))
        found = audit_runs(np.full(100, score), without, delta=0.0)
        assert found.epsilon_lower == pytest.approx(expected)
        assert found.right == 108 - above
    # Equal scores: 3 are above the fifth highest, but 4 might have been.
    tied = audit_runs(np.full(100, 7.0), np.array([9.0] * 3 + [5.0] * 5), delta=0.0)
    assert tied.epsilon_lower == pytest.approx(expected)
    # What equals a threshold is not above it.
    at = audit_runs(np.full(100, 9.0), np.arange(8.0), delta=0.0, thresholds=[7.0])
    assert (at.guesses, at.right) == (108, 108)


def test_runs_come_near_a_gaussian_mechanism() -> None:
    rng, delta = np.random.default_rng(7), 1e-2
    true = get_epsilon_gaussian(1.0, delta)
    scores = rng.normal(1, 1, 1_000_000), rng.normal(0, 1, 1_000_000)
    for thresholds in ([2.5], list(np.linspace(1, 4, 20)), None):
        found = audit_runs(*scores, delta=delta, thresholds=thresholds).epsilon_lower
        assert 0.85 * true < found < true


@pytest.mark.parametrize("tied", [False, True])
def test_runs_keep_their_confidence(tied: bool) -> None:
    """Laplace noise, exactly ε-DP; also rounded, so that many scores are equal."""
    rng, epsilon = np.random.default_rng(8), 1.0
    misses = np.zeros(3)
    for _ in range(SIMULATIONS):
        pair = [rng.laplace(shift, 1 / epsilon, 120) for shift in (1.0, 0.0)]
        if tied:
            pair = [np.round(scores) for scores in pair]
        for kind, thresholds in enumerate([[1.0], list(np.linspace(-2, 4, 30)), None]):
            audit = audit_runs(pair[0], pair[1], delta=0.0, thresholds=thresholds)
            misses[kind] += audit.epsilon_lower > epsilon
    assert misses.max() <= MOST_MISSES


def test_many_thresholds_must_share_the_significance() -> None:
    """Laplace noise: outside of [0, 1] each threshold has the ratio e^ε, and errors of its own."""
    rng, epsilon = np.random.default_rng(9), 1.0
    thresholds = np.linspace(-5, 6, 45)
    alone = shared = 0
    for _ in range(SIMULATIONS):
        pair = rng.laplace(1, 1 / epsilon, 10_000), rng.laplace(0, 1 / epsilon, 300)
        one_by_one = [audit_runs(*pair, delta=0.0, thresholds=[t]) for t in thresholds]
        alone += max(audit.epsilon_lower for audit in one_by_one) > epsilon
        together = audit_runs(*pair, delta=0.0, thresholds=list(thresholds))
        shared += together.epsilon_lower > epsilon
    assert shared <= MOST_MISSES < alone


def test_bad_input_is_refused() -> None:
    scores, included = np.arange(20.0), np.arange(20) % 2 == 0
    holed = np.where(scores < 3, np.nan, scores)
    with pytest.raises(ValueError, match="3 of 20 scores are NaN"):
        audit_one_run(holed, included, delta=0.0)
    for pair in ((holed, scores), (scores, holed)):
        with pytest.raises(ValueError, match="3 of 20 scores are NaN"):
            audit_runs(*pair, delta=0.0)
    with pytest.raises(ValueError, match="thresholds are NaN"):
        audit_runs(scores, scores, delta=0.0, thresholds=[math.nan])
    for empty in ([], [[1.0]]):
        with pytest.raises(ValueError, match="row of one number or more"):
            audit_runs(empty, scores, delta=0.0)
    with pytest.raises(ValueError, match="20 scores, but 19 coins"):
        audit_one_run(scores, included[1:], delta=0.0)
    for guesses in ([], [(15, 6)], [(-1, 2)]):
        with pytest.raises(ValueError, match="pairs that add up to at most 20"):
            audit_one_run(scores, included, delta=0.0, guesses=guesses)
    with pytest.raises(ValueError, match="not 0 ≤ right"):
        one_run_probability(10, 5, 6, epsilon=1.0, delta=0.0)
    for delta, significance, named in ((1.0, 0.05, "δ"), (-0.1, 0.05, "δ"), (0.0, 0.5, "sign")):
        with pytest.raises(ValueError, match=f"{named}.* must be in"):
            audit_one_run(scores, included, delta=delta, significance=significance)
        with pytest.raises(ValueError, match=f"{named}.* must be in"):
            audit_runs(scores, scores, delta=delta, significance=significance)
