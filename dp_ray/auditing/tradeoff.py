"""Whether one run can be what a ledger says: all of its ε and δ at once, held against guesses.

A pair (ε, δ) is one point of what a mechanism promises. An attack on Gaussian noise breaks the
promise elsewhere first, so an audit against the whole curve sees faults that an audit against the
pair does not (Mahloujifar, Melis & Chaudhuri 2025, arXiv 2410.22235).

The promise: if an event has probability x without an example, it has at most f̄(x) with it, and
the other way round, where f̄(x) is the least of e^ε x + δ(ε), and of what follows for the opposite
event, 1 - e^-ε (1 - δ(ε) - x), over all ε ≥ 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dp_ray.auditing.bounds import Audit, rights_by_guesses
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.history import History

_STEP = 1e-3
"""Grid of privacy losses. Coarser ones give a larger δ, so a weaker promise: safe."""

_EPSILONS = np.concatenate([np.linspace(0, 4, 161), np.linspace(4, 16, 97)[1:]])
"""Where the curve is taken; between them it is weaker than the promise: safe."""

_CLOSE = 1.01
"""The noise that is refuted is found to this factor."""

_LEAST_NOISE, _MOST_NOISE = 0.5, 64.0
"""Factors between which it is looked for: less takes accountants long, more means no ε."""


@dataclass(frozen=True)
class HistoryAudit(Audit):
    """What an attack showed of a ledger's history.

    Attributes:
        refuted: whether the history itself is refuted.
    """

    refuted: bool


@dataclass(frozen=True)
class Curve:
    """δ for each of some ε: what a mechanism promises.

    Attributes:
        epsilons: [n] ε ≥ 0.
        deltas: [n].
    """

    epsilons: NDArray[np.float64]
    deltas: NDArray[np.float64]

    @classmethod
    def of(cls, history: History) -> Curve:
        """The promise of Poisson-sampled Gaussian mechanisms (dp-accounting's PLD).

        Args:
            history: every noised sum, all of them with noise.
        """
        from dp_accounting.pld import privacy_loss_distribution as pld

        total = None
        for sigma, rate, count in history:
            one = pld.from_gaussian_mechanism(
                sigma, sampling_prob=rate, value_discretization_interval=_STEP
            )
            many = one.self_compose(count)
            total = many if total is None else total.compose(many)
        if total is None:
            return cls(_EPSILONS, np.zeros_like(_EPSILONS))
        return cls(_EPSILONS, np.array(total.get_delta_for_epsilon(_EPSILONS.tolist())))

    def least(self, probability: float) -> float:
        """The inverse of f̄: least that an event must have without, if it has this much with."""
        direct = (probability - self.deltas) * np.exp(-self.epsilons)
        opposite = 1 - self.deltas - np.exp(self.epsilons) * (1 - probability)
        return max(0.0, float(direct.max()), float(opposite.max()))


def is_possible(
    curve: Curve, canaries: int, guesses: int, right: int, *, significance: float
) -> bool:
    """False if under the curve so many right guesses have less than this probability.

    Let p_i be the probability of exactly i right guesses among r, of m canaries. The guess on a
    canary drawn at random is right, and i are right in all, with probability i/m · p_i; it is
    wrong, and i - 1 are right, with (r - i + 1)/m · p_(i-1). These are one event, that the
    others' i - 1 are right and this canary is guessed so, with its coin either way. So for each j

        Σ over i ≥ j of i/m · p_i  ≤  f̄( Σ over i ≥ j of (r - i + 1)/m · p_(i-1) ).

    From the tail inwards that says how much p must be at the least (derived here after arXiv
    2410.22235, whose idea it is); if it is more than r/m in all, the tail cannot be so likely.

    Args:
        curve: what is promised for one example more or less.
        canaries: m.
        guesses: r ≤ m, fixed beforehand.
        right: v ≤ r.
        significance: the probability.
    """
    here = significance * right / canaries  # Σ i/m p_i of the tail, were it so likely
    below = significance * (guesses - right) / canaries  # Σ (r - i)/m p_i
    for i in range(right - 1, -1, -1):
        if here + below > guesses / canaries:
            return False
        more = max(below, curve.least(here))
        here += i / (guesses - i) * (more - below)
        below = more
    return here + below <= guesses / canaries


def numbers_of_guesses(canaries: int) -> list[tuple[int, int]]:
    """Which (in, out) numbers to try: what tells Gaussian curves apart best, by simulation.

    The bound is loose for guesses on all canaries, and few ones say little.
    """
    tried = dict.fromkeys(max(canaries // part, 1) for part in (8, 16, 32))
    return [pair for k in tried for pair in ((k, k), (k, 0)) if sum(pair) <= canaries]


def audit_history(
    scores: ArrayLike,
    included: ArrayLike,
    history: History,
    *,
    delta: float,
    significance: float = 0.05,
) -> HistoryAudit:
    """Lower bound on ε from one run, among mechanisms with the steps and q of a history.

    With the confidence the run did not have as much noise as the bound would need. So it says
    something of runs whose q and steps are known and whose noise is in question; it refutes a
    ledger, of which the noise is one factor, whatever is wrong with the run.

    Args:
        scores: [m] one for each canary, higher where it looks more like a member.
        included: [m] booleans: whether it was trained on, each by a fair coin of its own.
        history: what the ledger says, all of it with noise.
        delta: δ at which ε is stated.
        significance: probability in (0, 1/2) that the bound may be wrong.

    Returns:
        ε at the least noise that is refuted, which is looked for from half to 64 times the
        history's; 0 if none is.

    Raises:
        ValueError: see :func:`dp_ray.auditing.bounds.audit_one_run`.
    """
    pairs = numbers_of_guesses(len(np.asarray(included)))
    tried = rights_by_guesses(scores, included, pairs)
    canaries, share = len(np.asarray(included)), significance / len(tried)

    def refuted(factor: float) -> tuple[int, int] | None:
        curve = Curve.of(scaled(history, factor))
        for guesses, right in tried:
            if not is_possible(curve, canaries, guesses, right, significance=share):
                return guesses, right
        return None

    factor, best = _least_refuted(refuted)
    epsilon = 0.0 if best is None else epsilon_of("pld", scaled(history, factor), delta)
    shown = tried[0] if best is None else best
    return HistoryAudit(epsilon, 1 - significance, delta, *shown, refuted=factor <= 1)


def scaled(history: History, factor: float) -> History:
    """The same sums with another noise."""
    return tuple((sigma * factor, rate, count) for sigma, rate, count in history)


def can_refute(history: History, canaries: int, *, significance: float) -> bool:
    """Whether guesses that are all right would refute a history; else an audit is in vain."""
    curve, pairs = Curve.of(history), numbers_of_guesses(canaries)
    share = significance / len(pairs)
    return any(not is_possible(curve, canaries, i + o, i + o, significance=share) for i, o in pairs)


def _least_refuted(
    refuted: Callable[[float], tuple[int, int] | None],
) -> tuple[float, tuple[int, int] | None]:
    """The smallest factor of the noise that is refuted, to 1%, and by which guesses."""
    low, high, best = _LEAST_NOISE, 1.0, refuted(1.0)
    if best is not None and (found := refuted(low)) is not None:
        return low, found
    while best is None:
        if high >= _MOST_NOISE:
            return math.inf, None
        low, high = high, 2 * high
        best = refuted(high)
    while high / low > _CLOSE:
        middle = math.sqrt(low * high)
        found = refuted(middle)
        if found is None:
            low = middle
        else:
            high, best = middle, found
    return high, best
