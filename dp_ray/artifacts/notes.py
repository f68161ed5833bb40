"""Notes that rank 0 leaves for the driver of a run, which may be on another machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import ClassVar

from dp_ray.document import Document
from dp_ray.performance.engine_choice import Choice


class EngineNote(Document):
    """engine.json: how microbatches are computed; private.

    Attributes:
        engine: its name.
        microbatch_size: B.
        seconds: measured time of a microbatch; None if it was not measured.
        note: why the choice is not what one would expect; empty if it is.
        peak_bytes: measured peak of a GPU's memory; None on a CPU.
        line: all of it in words.
    """

    FILE: ClassVar[str] = "engine.json"

    engine: str
    microbatch_size: int
    seconds: float | None
    note: str
    peak_bytes: float | None = None
    line: str

    @classmethod
    def of(cls, choice: Choice) -> EngineNote:
        """Return the note of a choice."""
        return cls(**asdict(choice), line=choice.line)


class StartNote(Document):
    """start.json: what a session started from; private.

    It is there once a session of this call has begun: later ones, after a failure, ask nothing.

    Attributes:
        line: in words; empty for a run that begins.
    """

    FILE: ClassVar[str] = "start.json"

    line: str


class PhaseNote(Document):
    """phase.json: what rank 0 does before its first step; private.

    Attributes:
        text: in words, such as ``reading the data``.
    """

    FILE: ClassVar[str] = "phase.json"

    text: str


class DataNote(Document):
    """data.json: what the workers left out of the data; private.

    Attributes:
        skipped: number of files by reason.
    """

    FILE: ClassVar[str] = "data.json"

    skipped: dict[str, int]
