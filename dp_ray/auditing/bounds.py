"""How much ε was spent at least, by what an attack could tell: to hold a claimed ε against.

- One run with many canaries, each put in by a fair coin: Steinke, Nasr & Jagielski 2023 (arXiv
  2305.08846), Theorem 5.2 and its form with abstentions, Corollary 5.4.
- Many runs with and without one canary, told apart by a threshold: Jagielski, Ullman & Oprea 2020
  (arXiv 2006.07709), with the exact bounds of Clopper & Pearson 1934.

Each bound holds with its confidence whatever the attack was, as long as whoever chose it had not
seen the coins. Where several attacks are tried on the same scores and the best is kept, they share
the significance (a union bound), and their list must not depend on the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

FEWEST = 8
"""With fewer guesses even an attack that is always right says little, and trying costs a share."""


@dataclass(frozen=True)
class Audit:
    """What an attack showed.

    Attributes:
        epsilon_lower: with this confidence the algorithm is not (ε, δ)-DP for any smaller ε.
        confidence: 1 - significance, over the coins and the algorithm's own randomness.
        delta: the δ at which that holds.
        guesses: how often the best attack guessed.
        right: how often it was right.
    """

    epsilon_lower: float
    confidence: float
    delta: float
    guesses: int
    right: int


def refutes(audit: Audit, *, epsilon: float, delta: float) -> bool:
    """Whether a claim to be (ε, δ)-DP is refuted, with the confidence of the audit.

    Raises:
        ValueError: if the claim's δ is above the audit's: that one allows less than was claimed.
    """
    if delta > audit.delta:
        raise ValueError(f"claimed δ = {delta} is above the audit's {audit.delta}; audit at that δ")
    return audit.epsilon_lower > epsilon


def one_run_probability(
    canaries: int, guesses: int, right: int, *, epsilon: float, delta: float
) -> float:
    """Most that the probability of so many right guesses can be under (ε, δ)-DP.

    Steinke et al. 2023, Corollary 5.4: with W ~ Binomial(guesses, e^ε / (1 + e^ε)),
    P[W ≥ right] + 2 · canaries · δ · max over i = 1 … right of P[right > W ≥ right - i] / i.

    Args:
        canaries: m, how many coins were thrown, abstentions included.
        guesses: r ≤ m, most guesses that the attack may make.
        right: v ≤ r, how many of them are right.
        epsilon: ε ≥ 0 (examples added or removed).
        delta: δ in [0, 1).

    Raises:
        ValueError: if the numbers are not 0 ≤ right ≤ guesses ≤ canaries.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"not 0 ≤ right ({right}) ≤ guesses ({guesses}) ≤ canaries ({canaries})")
    # Counted by the wrong guesses: their rate keeps its digits where ε is large.
    wrong, rate = guesses - right, special.expit(-epsilon)
    if right == 0:
        return 1.0
    enough = float(special.betaincc(wrong + 1, right, rate))  # P[Binomial(guesses, rate) ≤ wrong]
    if delta == 0:
        return enough
    steps = np.arange(1, right + 1)
    # By logarithms: scipy's own masses overflow where the rate is tiny.
    short = np.cumsum(np.exp(stats.binom.logpmf(wrong + steps, guesses, rate)))
    slope = float(np.max(short / steps))
    return min(1.0, enough + 2 * canaries * delta * slope)


def one_run_epsilon(
    canaries: int, guesses: int, right: int, *, delta: float, significance: float
) -> float:
    """The ε at which so many right guesses become as probable as the significance.

    Args:
        canaries: m, how many coins were thrown, abstentions included.
        guesses: r ≤ m, fixed before the scores were seen.
        right: v ≤ r.
        delta: δ in [0, 1).
        significance: probability in (0, 1/2) that the bound may be wrong.

    Returns:
        A lower bound on ε; 0 if nothing was learnt.

    Raises:
        ValueError: if an argument is outside of its range.
    """
    _check(delta, significance)

    def excess(epsilon: float) -> float:
        bound = one_run_probability(canaries, guesses, right, epsilon=epsilon, delta=delta)
        return bound - significance

    if excess(0.0) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-10))


def numbers_of_guesses(canaries: int) -> list[tuple[int, int]]:
    """Which numbers of guesses to try on one run: (in, out) pairs that no score has a say in.

    The half, quarter, eighth … of the canaries, as members alone and on both sides: about 2 log₂ m
    attacks, whose sharing costs little beside not knowing how many scores tell something.
    """
    halved = [canaries >> i for i in range(1, canaries.bit_length())]
    tried = [k for k in halved if k >= FEWEST] or [canaries // 2]
    return [pair for k in tried for pair in ((k, k), (k, 0))]


def audit_one_run(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    significance: float = 0.05,
    guesses: Sequence[tuple[int, int]] | None = None,
) -> Audit:
    """Lower bound on ε from one run (Steinke et al. 2023, Algorithm 1).

    Equal scores count against the attack, or the order of the canaries might tell the coins.

    Args:
        scores: [m] one for each canary, higher where it looks more like a member.
        included: [m] booleans: whether it was trained on, each by a fair coin of its own.
        delta: δ in [0, 1).
        significance: probability in (0, 1/2) that the bound may be wrong.
        guesses: (in, out) pairs to try: so many of the highest scores are guessed to be in, so many
            of the lowest to be out. Fixed before the scores were seen; several share the
            significance evenly. By default :func:`numbers_of_guesses`.

    Raises:
        ValueError: if a score is NaN, lengths differ, or an argument is outside of its range.
    """
    _check(delta, significance)
    canaries = np.size(scores)
    pairs = numbers_of_guesses(canaries) if guesses is None else list(guesses)
    tried = rights_by_guesses(scores, included, pairs)
    share = significance / len(tried)
    epsilon, best = 0.0, tried[0]
    for number, right in tried:
        # Most attacks are no better than the best so far, which one look tells.
        if one_run_probability(canaries, number, right, epsilon=epsilon, delta=delta) < share:
            best = number, right
            epsilon = one_run_epsilon(canaries, *best, delta=delta, significance=share)
    return Audit(epsilon, 1 - significance, delta, *best)


def rights_by_guesses(
    scores: ArrayLike, included: ArrayLike, pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """For each (in, out) pair the number of guesses, and how many are right.

    Args:
        scores: as in :func:`audit_one_run`; equal ones count against the attack.
        included: likewise.
        pairs: likewise.

    Raises:
        ValueError: if a score is NaN, lengths differ, or a pair asks for too many guesses.
    """
    values, joined = _row(scores), np.asarray(included, dtype=bool)
    if joined.shape != values.shape:
        raise ValueError(f"{values.size} scores, but {joined.size} coins")
    if not pairs or any(min(pair) < 0 or sum(pair) > values.size for pair in pairs):
        raise ValueError(f"guesses must be pairs that add up to at most {values.size}, got {pairs}")
    right_in = np.cumsum([0, *joined[np.lexsort((joined, -values))]])
    right_out = np.cumsum([0, *~joined[np.lexsort((~joined, values))]])
    return [(i + o, int(right_in[i] + right_out[o])) for i, o in pairs]


def rate_at_least(hits: int, trials: int, significance: float) -> float:
    """Lower end of a rate, one-sided (Clopper & Pearson 1934)."""
    return float(special.betaincinv(hits, trials - hits + 1, significance)) if hits else 0.0


def rate_at_most(hits: int, trials: int, significance: float) -> float:
    """Upper end of a rate, one-sided (Clopper & Pearson 1934)."""
    if hits == trials:
        return 1.0
    return float(special.betainccinv(hits + 1, trials - hits, significance))


def audit_runs(
    scores_with: ArrayLike,
    scores_without: ArrayLike,
    *,
    delta: float,
    significance: float = 0.05,
    thresholds: Sequence[float] | None = None,
) -> Audit:
    """Lower bound on ε from many runs with and without a canary, told apart by a threshold.

    With the true and false positive rates t and f of "above the threshold", (ε, δ)-DP says by its
    definition that t ≤ e^ε f + δ and 1 - f ≤ e^ε (1 - t) + δ. Of a threshold's share of the
    significance, t and f have half each.

    Args:
        scores_with: [n] scores of independent runs that had the canary.
        scores_without: [n'] scores of independent runs that did not.
        delta: δ in [0, 1).
        significance: probability in (0, 1/2) that the bound may be wrong.
        thresholds: fixed before the scores were seen; several share the significance evenly. By
            default ranks are fixed instead: the half, quarter, eighth … and none of
            ``scores_without`` are above.

    Raises:
        ValueError: if a score is NaN, there are none, or an argument is outside of its range.
    """
    _check(delta, significance)
    positive, negative = _row(scores_with), _row(scores_without)
    if thresholds is None:
        tried = list(_by_rank(negative))
    else:
        tried = [(t, int(np.sum(negative > t))) for t in _row(thresholds, "thresholds")]
    share = significance / len(tried) / 2
    best = Audit(0.0, 1 - significance, delta, 0, 0)
    for threshold, false in tried:
        true = int(np.sum(positive > threshold))
        t = rate_at_least(true, positive.size, share)
        f = rate_at_most(false, negative.size, share)
        ratio = max((t - delta) / f, (1 - f - delta) / (1 - t))
        epsilon = float(np.log(max(ratio, 1.0)))
        if epsilon > best.epsilon_lower or not best.guesses:
            number, right = positive.size + negative.size, true + negative.size - false
            best = Audit(epsilon, 1 - significance, delta, number, right)
    return best


def _by_rank(scores: NDArray[np.float64]) -> Iterator[tuple[float, int]]:
    """Thresholds with the number of these scores above.

    What lies above the k-th highest of n draws has at most a Beta(k, n - k + 1) probability, from
    whatever they are drawn: Clopper & Pearson's upper end for k - 1 hits is one of its quantiles.
    So the rank must be fixed beforehand, the threshold not; and ties leave k - 1 as it is.
    """
    falling = np.sort(scores)[::-1]
    for above in (*(scores.size >> i for i in range(1, scores.size.bit_length())), 0):
        yield float(falling[above]), above


def _row(values: ArrayLike, name: str = "scores") -> NDArray[np.float64]:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or not row.size:
        raise ValueError(f"{name} must be a row of one number or more, not of shape {row.shape}")
    if np.isnan(row).any():
        raise ValueError(f"{int(np.isnan(row).sum())} of {row.size} {name} are NaN")
    return row


def _check(delta: float, significance: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"δ must be in [0, 1), got {delta}")
    if not 0 < significance < 0.5:
        raise ValueError(f"significance must be in (0, 1/2), got {significance}")
