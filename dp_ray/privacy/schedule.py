"""Noise that falls during a run, in equal parts of it; each part is charged with its own σ."""

from __future__ import annotations

from dataclasses import dataclass

from dp_ray.privacy.history import History


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

    def noise_at(self, noise_multiplier: float, step: int, steps: int) -> float:
        """σ of a step, the same to the last bit as in :meth:`releases`.

        Args:
            noise_multiplier: the first σ.
            step: counted from 0.
            steps: T.
        """
        end = 0
        for factor, length in zip(self.factors, self.lengths(steps), strict=True):
            end += length
            if step < end:
                return noise_multiplier * factor
        return noise_multiplier * self.factors[-1]

    def releases(self, noise_multiplier: float, sample_rate: float, steps: int) -> History:
        """What T steps release, as the accountants take it.

        Args:
            noise_multiplier: the first σ.
            sample_rate: q.
            steps: T.
        """
        parts = zip(self.factors, self.lengths(steps), strict=True)
        return tuple((noise_multiplier * f, sample_rate, n) for f, n in parts if n > 0)
