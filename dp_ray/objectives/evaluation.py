"""The result of an evaluation, and the names of its metrics."""

from __future__ import annotations

from dataclasses import dataclass

METRIC_NAMES = ("test_accuracy", "test_loss")


@dataclass(frozen=True)
class Evaluation:
    """How good parameters are on the test split.

    Attributes:
        accuracy: share of examples whose largest logit is their label's.
        loss: mean cross-entropy in nats; infinite if it is no number.
        examples: how many there are.
    """

    accuracy: float
    loss: float
    examples: int = 0

    def named(self) -> dict[str, float]:
        """By the names that results have."""
        return dict(zip(METRIC_NAMES, (self.accuracy, self.loss), strict=True))
