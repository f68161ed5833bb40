"""What was released, as accountants take it, and what a plan still covers of what is to come."""

from __future__ import annotations

import math

History = tuple[tuple[float, float, int], ...]
"""What was released: (noise multiplier σ, sampling rate q, number of noised sums), in any order."""


def first_of(history: History, count: int) -> History:
    """The first so many sums of a history."""
    kept = []
    for noise, rate, length in history:
        kept.append((noise, rate, min(length, count)))
        count -= kept[-1][2]
    return tuple(entry for entry in kept if entry[2] > 0)


def room(planned: History, spent: History, noise_multiplier: float) -> int:
    """How many more sums noised with σ a plan covers.

    A planned sum covers one that was noised as much or more, and each covers one alone. So up to
    each σ no more may be spent than is planned; if more was, nothing is covered any longer.

    Args:
        planned: all that may be released.
        spent: what was.
        noise_multiplier: σ of the further sums.

    Returns:
        Negative if the plan does not even cover ``spent``.
    """

    def count_up_to(sigma: float, history: History) -> int:
        return sum(count for noise, _, count in history if noise <= sigma)

    levels = {noise for noise, _, _ in (*planned, *spent)} | {noise_multiplier, math.inf}
    left = {s: count_up_to(s, planned) - count_up_to(s, spent) for s in levels}
    exceeded = min(left.values())
    return exceeded if exceeded < 0 else min(n for s, n in left.items() if s >= noise_multiplier)
