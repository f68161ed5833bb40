"""The result of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """How good parameters are on the test split.

    Attributes:
        metrics: name → value, in the objective's order; infinite if it is no number.
        examples: how many there are.
        warnings: of predictions that are of no use, in words; as exact as the metrics.
    """

    metrics: dict[str, float]
    examples: int = 0
    warnings: tuple[str, ...] = ()
