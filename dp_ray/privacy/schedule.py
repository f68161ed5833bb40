"""Noise that falls during a run, in equal parts of it; each part is charged with its own σ."""

from __future__ import annotations

import math
from dataclasses import dataclass

History = tuple[tuple[float, float, int], ...]
"""What was released: (noise multiplier σ, sampling rate q, number of noised sums), in any order."""


@dataclass(frozen=True)
class NoiseSchedule:
    """σ over the steps of a run, as parts of the first σ.

    T steps are cut into equal parts; where that leaves a rest, the last parts are one step longer,
    so that more steps never shorten a part. The factors do not rise: a step that is repeated then
    never costs more than the step at the end that is given up for it.

    Attributes:
        factors: one a part, the first 1, none above the one before.
    """

    factors: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        falls = all(a >= b > 0 for a, b in zip(self.factors, self.factors[1:], strict=False))
        if not self.factors or self.factors[0] != 1.0 or not falls:
            raise ValueError(f"{self.factors} does not begin with 1 and fall")

    def lengths(self, steps: int) -> list[int]:
        """Steps in each part."""
        shortest, rest = divmod(steps, len(self.factors))
        parts = len(self.factors)
        return [shortest + (part >= parts - rest) for part in range(parts)]

    def factor_at(self, step: int, steps: int) -> float:
        """σ of a step over the first σ.

        Args:
            step: counted from 0.
            steps: T.
        """
        end = 0
        for factor, length in zip(self.factors, self.lengths(steps), strict=True):
            end += length
            if step < end:
                return factor
        return self.factors[-1]

    def releases(self, noise_multiplier: float, sample_rate: float, steps: int) -> History:
        """What T steps release, as the accountants take it.

        Args:
            noise_multiplier: the first σ.
            sample_rate: q.
            steps: T.
        """
        parts = zip(self.factors, self.lengths(steps), strict=True)
        return tuple((noise_multiplier * f, sample_rate, n) for f, n in parts if n > 0)


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


CONSTANT = NoiseSchedule()
"""The same σ all along."""
