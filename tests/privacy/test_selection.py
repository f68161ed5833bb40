"""What a search costs, against the paper's formulas written out again, and by simulation."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy import special, stats

from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.selection import Run, TrialCount, adaptive_epsilon, selection_epsilon

DE = ((1.589, 2048 / 60000, 800),)  # of the design: one run costs 3.19
GRID = [1 + i / 20 for i in range(1, 400)] + [float(i) for i in range(21, 200)]


@cache
def renyi(run: Run, order: float) -> float:
    """Divergence of all steps, by integrating the density of one (Mironov et al. 2019, § 3)."""
    return sum(renyi_of(*part, order) for part in run)


def renyi_of(sigma: float, rate: float, steps: int, order: float) -> float:
    # The mass lies between the means of the normal densities, and moves out with the order.
    z = np.linspace(-14 * sigma, order + 14 * sigma, 20_001)
    other = math.log1p(-rate) if rate < 1 else -math.inf
    ratio = np.logaddexp(other, math.log(rate) + (2 * z - 1) / (2 * sigma**2))
    density = -(z**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    moment = special.logsumexp(order * ratio + density) + math.log(z[1] - z[0])
    return float(steps * moment / (order - 1))


def worst(runs: list[Run], order: float) -> float:
    return max(renyi(run, order) for run in runs)


def to_epsilon(curve: dict[float, float], delta: float) -> float:
    """Canonne, Kamath & Steinke 2020 (arXiv 2004.00010), Proposition 12."""
    return min(
        value + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for order, value in curve.items()
    )


def to_delta(curve: dict[float, float], epsilon: float) -> float:
    """The same the other way round, or Bretagnolle & Huber's bound."""
    exponents = [
        min(
            (order - 1) * (value - epsilon + math.log1p(-1 / order)) - math.log(order),
            0.5 * math.log(-math.expm1(-value)),
        )
        for order, value in curve.items()
    ]
    return min(1.0, math.exp(min(exponents)))


def by_theorem_2(runs: list[Run], mean: float, eta: float, delta: float) -> float:
    """Truncated negative binomial; γ by bisection of the mean of Definition 1."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        gamma = (low + high) / 2
        found = eta * (1 - gamma) / gamma / (1 - gamma**eta)
        low, high = (gamma, high) if found > mean else (low, gamma)
    curve = {order: worst(runs, order) for order in GRID}
    second = min((1 - 1 / order) * value - math.log(low) / order for order, value in curve.items())
    best = {
        order: value + (1 + eta) * second + math.log(mean) / (order - 1)
        for order, value in curve.items()
    }
    return to_epsilon(best, delta)


def by_theorem_6(runs: list[Run], mean: float, delta: float) -> float:
    """Poisson."""
    curve = {order: worst(runs, order) for order in GRID}
    best = {
        order: value
        + mean * to_delta(curve, math.log1p(1 / (order - 1)))
        + math.log(mean) / (order - 1)
        for order, value in curve.items()
    }
    return to_epsilon(best, delta)


SETTINGS: list[tuple[list[Run], TrialCount, float]] = [
    ([DE], TrialCount("geometric", 8), 1e-5),
    ([DE], TrialCount("geometric", 32), 1e-5),
    ([DE], TrialCount("truncated_negative_binomial", 8, 0.5), 1e-5),
    ([DE], TrialCount("truncated_negative_binomial", 20, 2.0), 1e-5),
    ([DE], TrialCount("poisson", 8), 1e-5),
    ([((4.5, 0.356, 100),)], TrialCount("poisson", 3), 1e-4),
    ([((4.5, 0.356, 100),)], TrialCount("geometric", 5), 1e-4),
    # Equal ε, other curves: the worst at each order counts.
    ([((3.1, 0.356, 45),), ((5.7, 0.356, 166),)], TrialCount("poisson", 8), 1e-4),
    (
        [((1.0, 0.01, 2000),), ((2.5, 0.05, 600),)],
        TrialCount("truncated_negative_binomial", 12, 0.3),
        1e-6,
    ),
    (
        [((1.0, 0.01, 2000),), ((2.5, 0.05, 600),), ((8.0, 1.0, 3),)],
        TrialCount("geometric", 4),
        1e-6,
    ),
    # σ that falls during a run.
    ([((2.0, 0.05, 200), (1.5, 0.05, 300)), DE], TrialCount("geometric", 8), 1e-5),
]


@pytest.mark.parametrize(("runs", "count", "delta"), SETTINGS)
def test_selection_is_what_the_paper_says(runs: list[Run], count: TrialCount, delta: float) -> None:
    if count.distribution == "poisson":
        expected = by_theorem_6(runs, count.mean, delta)
    else:
        expected = by_theorem_2(runs, count.mean, count.eta, delta)
    found = selection_epsilon(runs, count, delta)
    assert found == pytest.approx(expected, rel=5e-4)
    for run in runs:
        assert found > selection_epsilon([run], TrialCount("geometric", 1), delta) - 0.05
        assert found > epsilon_of("prv", run, delta)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (TrialCount("geometric", 8), 5.84),
        (TrialCount("truncated_negative_binomial", 8, 0.5), 5.48),
        (TrialCount("poisson", 8), 6.19),
        (TrialCount("geometric", 32), 6.88),
    ],
)
def test_figures_of_the_design(count: TrialCount, expected: float) -> None:
    assert round(selection_epsilon([DE], count, 1e-5), 2) == expected


def test_more_runs_in_the_space_or_in_the_mean_cost_more() -> None:
    few, many = [((3.1, 0.356, 45),)], [((3.1, 0.356, 45),), ((5.7, 0.356, 166),)]
    count = TrialCount("poisson", 8)
    assert selection_epsilon(few, count, 1e-4) <= selection_epsilon(many, count, 1e-4)
    costs = [selection_epsilon(many, TrialCount("poisson", m), 1e-4) for m in (1, 2, 4, 8, 16)]
    assert costs == sorted(costs)
    more = selection_epsilon(few, count, 1e-4, then=few)
    assert more > selection_epsilon(few, count, 1e-4)


def test_adaptive_search_is_charged_whole() -> None:
    """n equal runs compose as a run of n times the steps; of unequal ones the worst counts."""
    [(sigma, rate, steps)] = DE
    once = adaptive_epsilon([DE], 1, 1e-5)
    assert once == pytest.approx(3.19, abs=5e-3)
    whole = adaptive_epsilon([((sigma, rate, 8 * steps),)], 1, 1e-5)
    assert adaptive_epsilon([DE], 8, 1e-5) == pytest.approx(whole, rel=1e-9)
    other = ((2.0, rate, 1400),)
    both = adaptive_epsilon([DE, other], 8, 1e-5)
    assert both >= max(adaptive_epsilon([DE], 8, 1e-5), adaptive_epsilon([other], 8, 1e-5))


def test_without_noise_there_is_no_bound() -> None:
    runs = [DE, ((0.0, 0.1, 1),)]
    assert selection_epsilon(runs, TrialCount("poisson", 2), 1e-5) == math.inf
    assert adaptive_epsilon(runs, 2, 1e-5) == math.inf


@pytest.mark.parametrize(
    "count",
    [
        TrialCount("poisson", 8),
        TrialCount("poisson", 1),
        TrialCount("geometric", 8),
        TrialCount("truncated_negative_binomial", 8, 0.5),
        TrialCount("truncated_negative_binomial", 3, 4.0),
    ],
)
def test_the_number_of_trials_has_its_distribution(count: TrialCount) -> None:
    """Quantiles at 4000 even shares: the mean, and the paper's probabilities of each number."""
    shares = (np.arange(4000) + 0.5) / 4000
    drawn = np.array([count.draw(float(share)) for share in shares])
    assert drawn.mean() == pytest.approx(count.mean, rel=0.01)
    for k in range(6):
        assert np.mean(drawn == k) == pytest.approx(probability(count, k), abs=6e-4)


def probability(count: TrialCount, k: int) -> float:
    """P[K = k]: the Poisson law, or Definition 1 by its recursion."""
    if count.distribution == "poisson":
        return float(stats.poisson.pmf(k, count.mean))
    if k == 0:
        return 0.0
    eta, low, high = count.eta, 1e-12, 1 - 1e-12
    for _ in range(200):
        gamma = (low + high) / 2
        found = eta * (1 - gamma) / gamma / (1 - gamma**eta)
        low, high = (gamma, high) if found > count.mean else (low, gamma)
    rising = math.prod((j + eta) / (j + 1) for j in range(k))
    return (1 - gamma) ** k / (gamma**-eta - 1) * rising


def test_one_trial_on_average_is_one_trial() -> None:
    for name in ("geometric", "truncated_negative_binomial"):
        count = TrialCount(name, 1.0, 0.5)  # type: ignore[arg-type]
        assert {count.draw(share) for share in (0.0, 0.3, 0.999999)} == {1}
    assert TrialCount("poisson", 8).draw(0.0) == 0
