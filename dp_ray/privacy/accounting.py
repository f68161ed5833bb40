"""What a number of steps costs, and which noise or number of steps meets a budget.

Neighbouring data sets differ in one example (added or removed); each step is the Gaussian
mechanism on a Poisson sample (design: q, σ, T). Accountants:

- ``prv``: Opacus, numerical composition (Gopi et al. 2021, arXiv 2106.02848).
- ``rdp``: Opacus, Rényi orders (Mironov et al. 2019, arXiv 1908.10530); looser, fast.
- ``pld``: dp-accounting, privacy loss distributions (Doroshenko et al. 2022, arXiv 2207.04380).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

AccountantName = Literal["prv", "rdp", "pld"]

EPSILON_TOLERANCE = 1e-3
"""How far below the planned ε a calibrated plan may end; it never ends above."""

MAX_STEPS = 10_000_000
MAX_NOISE_MULTIPLIER = 1e4


class BudgetError(ValueError):
    """No noise multiplier or number of steps in reach meets the budget."""


History = tuple[tuple[float, float, int], ...]
"""What was released: (noise multiplier σ, sampling rate q, number of noised sums), in any order."""


def epsilon(
    accountant: AccountantName,
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
) -> float:
    """ε of ``steps`` equal steps, at ``delta``; see :func:`epsilon_of`.

    Args:
        accountant: which of the three accountants to ask.
        noise_multiplier: σ, noise standard deviation over sensitivity; 0 means no privacy.
        sample_rate: q in (0, 1].
        steps: number of noised sums released.
        delta: δ in (0, 1).
    """
    return epsilon_of(accountant, ((noise_multiplier, sample_rate, steps),), delta)


@cache
def epsilon_of(accountant: AccountantName, history: History, delta: float) -> float:
    """ε of all that was released, at ``delta``.

    Args:
        accountant: which of the three accountants to ask.
        history: every noised sum, replays under a new incarnation included.
        delta: δ in (0, 1).

    Returns:
        An upper bound; ``inf`` without noise, 0 without steps.
    """
    released = [entry for entry in history if entry[2] > 0]
    if not released:
        return 0.0
    if any(sigma == 0 for sigma, _, _ in released):
        return math.inf
    if accountant == "pld":
        return _pld_epsilon(released, delta)
    from opacus.accountants import PRVAccountant, RDPAccountant

    opacus_accountant = PRVAccountant() if accountant == "prv" else RDPAccountant()
    opacus_accountant.history = released
    with warnings.catch_warnings():
        # RDP warns when the best order is the largest one tried; the bound holds all the same.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        # At q = 1 PRV takes the logarithm of zero where the density is zero, as it should.
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        return float(opacus_accountant.get_epsilon(delta))


def epsilon_by_accountant(history: History, delta: float) -> dict[AccountantName, float]:
    """ε of all that was released, by each accountant; see :func:`epsilon_of`."""
    names: tuple[AccountantName, ...] = ("prv", "rdp", "pld")
    return {name: epsilon_of(name, history, delta) for name in names}


def _pld_epsilon(released: list[tuple[float, float, int]], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for sigma, rate, steps in released:
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps)
    return float(accountant.get_epsilon(delta))


def solve_noise_multiplier(
    accountant: AccountantName, *, target: float, sample_rate: float, steps: int, delta: float
) -> float:
    """The smallest σ (to the tolerance) with which ``steps`` steps cost at most ``target``.

    Raises:
        BudgetError: not even σ = 10⁴ meets the target.
    """

    from scipy.optimize import brentq

    def cost(sigma: float, name: AccountantName = accountant) -> float:
        return epsilon(
            name, noise_multiplier=sigma, sample_rate=sample_rate, steps=steps, delta=delta
        )

    # RDP is cheap and looser: where it meets the budget, σ is known within a factor. (Below about
    # ε = log(1/δ)/62 its largest order meets none.)
    high = _bracket(lambda sigma: cost(sigma, "rdp") <= target)
    if high is None and accountant != "rdp":
        high = _bracket(lambda sigma: cost(sigma) <= target)
    if high is None:
        raise BudgetError(f"no noise multiplier up to {MAX_NOISE_MULTIPLIER:g} is enough")
    low = high / 1.5
    while cost(low) <= target:
        high, low = low, low / 1.5

    # Aim a little below the target, so that the root's own error does not pass it.
    aim = target - min(EPSILON_TOLERANCE, 0.01 * target) / 2
    sigma = float(brentq(lambda x: cost(x) - aim, low, 2 * high, rtol=1e-5))
    while cost(sigma) > target:
        sigma *= 1 + 1e-5
    return sigma


def _bracket(meets: Callable[[float], bool]) -> float | None:
    """The first σ = ¼·1.5ⁿ that meets the budget."""
    sigma = 0.25
    while not meets(sigma):
        sigma *= 1.5
        if sigma > MAX_NOISE_MULTIPLIER:
            return None
    return sigma


def solve_steps(
    accountant: AccountantName,
    *,
    target: float,
    noise_multiplier: float,
    sample_rate: float,
    delta: float,
) -> int:
    """The largest number of steps that costs at most ``target``.

    Raises:
        BudgetError: a single step costs more, or more than 10⁷ steps cost less.
    """

    def affordable(steps: int) -> bool:
        cost = epsilon(
            accountant,
            noise_multiplier=noise_multiplier,
            sample_rate=sample_rate,
            steps=steps,
            delta=delta,
        )
        return cost <= target

    if not affordable(1):
        raise BudgetError("a single step costs more than the whole budget")
    low, high = 1, 2
    while affordable(high):
        low, high = high, high * 2
        if high > MAX_STEPS:
            raise BudgetError(f"more than {MAX_STEPS:,} steps fit")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return low
