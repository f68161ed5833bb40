"""What a number of steps costs, and which noise or number of steps meets a budget.

Neighbouring data sets differ in one example (added or removed); each step is the Gaussian
mechanism on a Poisson sample (design: q, σ, T). Accountants:

- ``prv``: Opacus, numerical composition (Gopi et al. 2021, arXiv 2106.02848).
- ``rdp``: Opacus, Rényi orders (Mironov et al. 2019, arXiv 1908.10530); looser, fast.
- ``pld``: dp-accounting, privacy loss distributions (Doroshenko et al. 2022, arXiv 2207.04380).
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dp_ray.privacy.history import History

if TYPE_CHECKING:
    from dp_accounting.pld import PLDAccountant
    from opacus.accountants import PRVAccountant

AccountantName = Literal["prv", "rdp", "pld"]

EPSILON_TOLERANCE = 1e-3
"""How far below the planned ε a calibrated plan may end; it never ends above."""

MAX_STEPS = 10_000_000
MAX_NOISE_MULTIPLIER = 1e4


_LEAST_NOISE = 1e-6
"""Less is none: ε would be beyond 10⁶ after one step."""

_LEAST_DELTA = 1e-300
"""For PRV and PLD, which divide by small parts of δ; RDP takes its logarithm."""

_MOST_POINTS = {"prv": 1e7, "pld": 4e6}
"""Of a grid; so many take ten seconds, and PRV two gigabytes."""


class OpenPlan(Protocol):
    """A plan of which σ or T is open; hashable, because solvers remember what they found."""

    @property
    def delta(self) -> float:
        """δ in (0, 1)."""
        ...

    def released_with(self, noise_multiplier: float, steps: int) -> History:
        """Return what an accountant takes for T steps that begin with σ."""
        ...


class BudgetError(ValueError):
    """No noise multiplier or number of steps in reach meets the budget."""


@cache
def epsilon_of(accountant: AccountantName, history: History, delta: float) -> float:
    """ε of all that was released, at ``delta``.

    Args:
        accountant: which of the three accountants to ask.
        history: every noised sum, replays under a new incarnation included.
        delta: δ in (0, 1).

    Returns:
        An upper bound of at least 0, and never NaN; ``inf`` without noise, or where the accountant
        cannot count so much or fails; 0 without steps. PRV's figures wobble by as much as its
        error, 0.01: :func:`running_maximum` of them does not fall.
    """
    released = [entry for entry in history if entry[2] > 0]
    if not released:
        return 0.0
    if any(sigma < _LEAST_NOISE for sigma, _, _ in released):
        return math.inf
    if accountant != "rdp":  # its bound at δ/1000 is about where the others' grids must end
        steps = sum(count for _, _, count in released)
        if delta < _LEAST_DELTA:
            return math.inf
        if not _can_count(accountant, epsilon_of("rdp", history, delta / 1000), steps, delta):
            return math.inf
    try:
        epsilon = _ask(accountant, released, delta)
    except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError):
        return math.inf  # beyond what its arithmetic holds; infinity is a bound
    return math.inf if math.isnan(epsilon) else max(epsilon, 0.0)


def running_maximum(epsilons: Iterable[float]) -> list[float]:
    """Return ε of growing numbers of steps so that no more steps ever cost less.

    Each is an upper bound on what fewer steps cost, as every bound before it is.
    """
    return list(itertools.accumulate(epsilons, max))


def _ask(
    accountant: AccountantName, released: list[tuple[float, float, int]], delta: float
) -> float:
    """What the accountant says, which may be anything at the edges."""
    if accountant == "pld":
        return float(_pld_accountant(released).get_epsilon(delta))
    with warnings.catch_warnings():
        # RDP, which PRV asks too, warns when the best order is the largest one tried; the bound
        # holds all the same.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        if accountant == "rdp":
            return _rdp_epsilon(released, delta)
        # At q = 1 PRV takes the logarithm of zero where the density is zero, as it should.
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        prv = _prv_accountant()
        prv.history = released
        return float(prv.get_epsilon(delta))


def _rdp_epsilon(released: list[tuple[float, float, int]], delta: float) -> float:
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import get_privacy_spent

    orders = RDPAccountant.DEFAULT_ALPHAS
    total = sum(_rdp_of_a_step(sigma, rate) * steps for sigma, rate, steps in released)
    return float(get_privacy_spent(orders=orders, rdp=total, delta=delta)[0])


def _prv_accountant() -> PRVAccountant:
    """Opacus's PRV accountant, with a grid that is found in a fraction of its time.

    Opacus computes Rényi divergences anew for each number of steps, a second each time; they are
    those of one step, times the steps.
    """
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import Domain

    class Accountant(PRVAccountant):  # type: ignore[misc]  # Opacus has no types
        def _get_domain(
            self, prvs: Any, num_self_compositions: list[int], eps_error: float, delta_error: float
        ) -> Any:
            """As far as Gopi et al. 2021 (arXiv 2106.02848), remark 5.6, and Opacus say."""
            steps = sum(num_self_compositions)
            single = [[(p.noise_multiplier, p.sample_rate, 1)] for p in prvs]
            reaches = [_rdp_epsilon(step, delta_error / (8 * steps)) for step in single]
            reach = max(eps_error, _rdp_epsilon(self.history, delta_error / 4), *reaches) + 3
            mesh = eps_error / np.sqrt(steps * np.log(12 / delta_error) / 2)
            return Domain.create_aligned(-reach, reach, mesh)

    return Accountant()


@cache
def _rdp_of_a_step(sigma: float, rate: float) -> NDArray[np.float64]:
    """Rényi divergences of one step at Opacus's orders: 0.2 s, of which a run asks many times."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = RDPAccountant.DEFAULT_ALPHAS
    return np.asarray(compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=orders))


def _can_count(accountant: AccountantName, epsilon: float, steps: int, delta: float) -> bool:
    """Whether the grid on which an accountant convolves losses fits into memory and patience.

    It reaches as far as ``epsilon`` both ways. Its mesh is, for PRV, the one that Opacus takes from
    Gopi et al. 2021, with errors of 0.01 in ε and δ/1000 in δ; for PLD it is dp-accounting's.
    """
    if accountant == "rdp":
        return True
    fine = 0.01 / math.sqrt(steps * (math.log(12_000) - math.log(delta)) / 2)
    points = 2 * epsilon / (fine if accountant == "prv" else 1e-4)
    # PRV's rounding errors are those of all points together, and must stay below δ.
    return points < min(_MOST_POINTS[accountant], delta / float(np.finfo(np.longdouble).eps) / 2)


def _uncountable(accountant: AccountantName) -> str:
    return f"{accountant} cannot count so much, or at so small a δ; privacy.accountant=rdp can"


def epsilon_by_accountant(history: History, delta: float) -> dict[AccountantName, float]:
    """ε of all that was released, by each accountant; see :func:`epsilon_of`."""
    names: tuple[AccountantName, ...] = ("prv", "rdp", "pld")
    return {name: epsilon_of(name, history, delta) for name in names}


@cache
def epsilon_curve(history: History, deltas: tuple[float, ...]) -> tuple[float, ...]:
    """ε of all that was released at each δ, by ``pld``, which composes once for all of them.

    They hold at the same time. ``inf`` where the accountant has no bound.
    """
    released = [entry for entry in history if entry[2] > 0]
    if not released or any(sigma == 0 for sigma, _, _ in released):
        return (math.inf if released else 0.0,) * len(deltas)
    try:
        accountant = _pld_accountant(released)
        found = [float(accountant.get_epsilon(delta)) for delta in deltas]
    except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError):
        return (math.inf,) * len(deltas)
    return tuple(math.inf if math.isnan(epsilon) else max(epsilon, 0.0) for epsilon in found)


def _pld_accountant(released: list[tuple[float, float, int]]) -> PLDAccountant:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for sigma, rate, steps in released:
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps)
    return accountant


@cache
def solve_noise_multiplier(
    accountant: AccountantName,
    plan: OpenPlan,
    *,
    target: float,
    steps: int,
    near: float | None = None,
) -> float:
    """The smallest first σ (to the tolerance) with which ``steps`` steps cost at most ``target``.

    Args:
        accountant: who says what steps cost.
        plan: all but σ.
        target: ε.
        steps: T.
        near: a σ that is known to be close, to save time.

    Raises:
        BudgetError: not even σ = 10⁴ meets the target.
    """

    from scipy.optimize import brentq

    def cost(sigma: float, name: AccountantName = accountant) -> float:
        return epsilon_of(name, plan.released_with(sigma, steps), plan.delta)

    # What is met on the way to the target is a little more.
    if not _can_count(accountant, 3 * target, steps, plan.delta):
        raise BudgetError(_uncountable(accountant))
    wide = 1.5 if near is None else 1.02
    high = None
    if near is not None:
        high = _bracket(lambda sigma: cost(sigma) <= target, start=near * wide, factor=wide)
    # RDP is cheap and looser: where it meets the budget, σ is known within a factor. (Below about
    # ε = log(1/δ)/62 its largest order meets none.)
    elif accountant != "rdp":
        high = _bracket(lambda sigma: cost(sigma, "rdp") <= target)
    if high is None:
        high = _bracket(lambda sigma: cost(sigma) <= target)
    if high is None:
        raise BudgetError(f"no noise multiplier up to {MAX_NOISE_MULTIPLIER:g} is enough")
    low = high / wide
    while cost(low) <= target:
        high, low = low, low / wide

    # Aim a little below the target, so that the root's own error does not pass it.
    aim = target - min(EPSILON_TOLERANCE, 0.01 * target) / 2
    sigma = float(brentq(lambda x: cost(x) - aim, low, wide * high, rtol=1e-5))
    while cost(sigma) > target:
        sigma *= 1 + 1e-5
    return sigma


def _bracket(
    meets: Callable[[float], bool], *, start: float = 0.25, factor: float = 1.5
) -> float | None:
    """The first σ = start·factorⁿ that meets the budget."""
    sigma = start
    while not meets(sigma):
        sigma *= factor
        if sigma > MAX_NOISE_MULTIPLIER:
            return None
    return sigma


@cache
def solve_steps(
    accountant: AccountantName, plan: OpenPlan, *, target: float, noise_multiplier: float
) -> int:
    """The largest number of steps that costs at most ``target``.

    Args:
        accountant: who says what steps cost.
        plan: all but T.
        target: ε.
        noise_multiplier: σ; of the first step, if it falls.

    Raises:
        BudgetError: a single step costs more, or more than 10⁷ steps cost less.
    """

    def cost(steps: int) -> float:
        released = plan.released_with(noise_multiplier, steps)
        return epsilon_of(accountant, released, plan.delta)

    low, low_cost = 1, cost(1)
    if not _can_count(accountant, target, 1, plan.delta) or low_cost > target:
        single = "a single step costs more than the whole budget"
        raise BudgetError(single if target < low_cost < math.inf else _uncountable(accountant))
    high, high_cost = 1, low_cost
    while high_cost <= target:
        if high == MAX_STEPS:
            raise BudgetError(f"more than {MAX_STEPS:,} steps fit")
        low, low_cost = high, high_cost
        # ε grows about as the root of the steps, so one or two leaps pass the target.
        leap = min(low * (target / max(low_cost, 1e-3)) ** 2, 98 * low)
        high = min(2 * low + int(leap), MAX_STEPS)
        high_cost = cost(high)
    while high - low > 1:
        # Between the two by the power law through them, then halves: either gets there.
        for guess in (_by_power_law(low, low_cost, high, high_cost, target), (low + high) // 2):
            middle = min(max(guess, low + 1), high - 1)
            middle_cost = cost(middle)
            if middle_cost <= target:
                low, low_cost = middle, middle_cost
            else:
                high, high_cost = middle, middle_cost
            if high - low == 1:
                break
    if math.isinf(high_cost):  # the end of what can be counted, and not of the budget
        raise BudgetError(_uncountable(accountant))
    return low


def _by_power_law(low: int, low_cost: float, high: int, high_cost: float, target: float) -> int:
    """Where ε reaches the target, were it steps to some power between both ends."""
    if not 0 < low_cost < high_cost:
        return (low + high) // 2
    power = math.log(high_cost / low_cost) / math.log(high / low)
    return int(low * (target / low_cost) ** (1 / power))
