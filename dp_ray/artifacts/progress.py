"""How far a run is: progress.json, which the live lines read."""

from __future__ import annotations

from typing import ClassVar

from dp_ray.document import Document, Scored


class Progress(Document, Scored):
    """progress.json of a run; private, because speed shows how many examples were drawn.

    Attributes:
        step: updates taken.
        steps: T.
        charges: noised sums paid for.
        repaired: whether charges are on record that no step in the order of the plan made.
        images_per_second: expected images of a step over the time of the last steps.
        seconds_left: at that speed; None if it is not known yet.
        seconds: since this session of the run began.
    """

    FILE: ClassVar[str] = "progress.json"

    step: int
    steps: int
    charges: int
    repaired: bool
    images_per_second: float
    seconds_left: float | None
    seconds: float
