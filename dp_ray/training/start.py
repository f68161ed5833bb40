"""What a session starts from: the step, and the steps on record that it takes again."""

from __future__ import annotations

from dataclasses import dataclass

from dp_ray.ledger.balance import Repeats


@dataclass(frozen=True)
class Start:
    """What a session starts from.

    Attributes:
        step: the first step that it takes.
        steps: T.
        repeats: steps on record that it takes again.
        changes: what differs from the execution of the session before; empty if nothing does.
        lost: newer checkpoints that are damaged or missing.
    """

    step: int
    steps: int
    repeats: Repeats
    changes: str
    lost: int

    @property
    def line(self) -> str:
        """What a resumed run continues, in one line; empty for a run that begins."""
        if not self.step and not self.repeats.count:
            return ""
        text = f"continues after step {self.step} of {self.steps}{self._lost}"
        free = self.repeats.count - self.repeats.charged
        if free:
            text += f"; {_steps(self.step, free)} repeated at no cost"
        if self.repeats.charged:
            again = _steps(self.step + free, self.repeats.charged)
            text += f"; {again} charged again, because {self._reason}"
        return text

    @property
    def refusal(self) -> str:
        """Why it is not started without ``--accept-charges``, and the ways out."""
        again = self.repeats.charged
        first = self.step + self.repeats.count - again
        free = ""
        if self.changes:
            free = "To repeat them at no cost, resume with the settings of the session before. "
        elif self.lost:
            free = "To avoid it, restore the newest checkpoint from a backup. "
        return (
            f"{_steps(first, again)} to be charged again, because {self._reason}{self._lost}: "
            f"the run would end {again} steps early, at the same ε. {free}"
            f"To accept it, add --accept-charges {again}"
        )

    @property
    def _reason(self) -> str:
        if self.changes:
            return f"their sums would be rounded otherwise ({self.changes})"
        return "their sums on record cannot be had again"

    @property
    def _lost(self) -> str:
        if not self.lost:
            return ""
        newer = "newer checkpoints are" if self.lost > 1 else "newer checkpoint is"
        return f" ({self.lost} {newer} damaged or missing)"


def _steps(first: int, count: int) -> str:
    return f"step {first + 1} is" if count == 1 else f"steps {first + 1} to {first + count} are"
