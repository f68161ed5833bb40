"""The result of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """How good parameters are on the test split.

    Attributes:
        metrics: name → value, in the objective's order; infinite if it is no number.
        examples: how many there are.
    """

    metrics: dict[str, float]
    examples: int = 0
