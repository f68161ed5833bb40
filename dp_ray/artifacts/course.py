"""The course of a run: metrics.jsonl, one JSON object a line; private.

Lines are appended during the run, so the last one may be torn. A line that cannot be read is
skipped; lines have no format number.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from dp_ray.json_text import write_json
from dp_ray.storage import Folder

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Evaluated:
    """The model before a step: from what was released, and the test split.

    Attributes:
        step: which.
        epsilon: spent so far.
        max_grad_norm: C as it was.
        metrics: of the test split by name; empty without test examples.
    """

    step: int
    epsilon: float
    max_grad_norm: float
    metrics: dict[str, float | None] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Share of the test examples that the model is right on; None without them."""
        return self.metrics.get("test_accuracy")

    def line(self) -> str:
        """Return its line of the file."""
        values = {"step": self.step, "epsilon": self.epsilon, "max_grad_norm": self.max_grad_norm}
        return write_json({**values, **self.metrics}) + "\n"


@dataclass(frozen=True)
class Stepped:
    """What a step was like.

    Attributes:
        step: which.
        examples: how many were drawn.
        loss: mean over them.
        clipped_fraction: share of them whose gradient was longer than C.
        mean_norm: of their gradients.
        seconds: that the step took.
    """

    step: int
    examples: float
    loss: float
    clipped_fraction: float
    mean_norm: float
    seconds: float

    @property
    def numbers(self) -> dict[str, float]:
        """All but the step, by name."""
        values = asdict(self)
        del values["step"]
        return values

    def line(self) -> str:
        """Return its line of the file."""
        return write_json({"step": self.step, **self.numbers}) + "\n"


def read_course(private: Folder) -> tuple[list[Evaluated], list[Stepped]]:
    """Return both kinds of lines in the order of steps; of a repeated step the last.

    Args:
        private: the private part of a run.

    Raises:
        OSError: the file cannot be read.
    """
    evaluated: dict[int, Evaluated] = {}
    stepped: dict[int, Stepped] = {}
    lines = private.read(METRICS).splitlines() if private.exists(METRICS) else []
    for line in lines:
        found = read_line(line)
        if isinstance(found, Evaluated):
            evaluated[found.step] = found
        elif found is not None:
            stepped[found.step] = found
    return [evaluated[s] for s in sorted(evaluated)], [stepped[s] for s in sorted(stepped)]


def read_line(line: str | bytes) -> Evaluated | Stepped | None:
    """Return what a line of the file says; None for one that cannot be read."""
    try:
        values = json.loads(line)
        step = int(values.pop("step"))
        if "epsilon" in values:
            return _evaluated(step, values)
        return Stepped(step, **{n: _number(values[n], math.nan) for n in _NUMBERS})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


_NUMBERS = ("examples", "loss", "clipped_fraction", "mean_norm", "seconds")


def _evaluated(step: int, values: dict[str, Any]) -> Evaluated:
    epsilon, norm = (_number(values[name], math.inf) for name in ("epsilon", "max_grad_norm"))
    metrics = {
        name: None if value is None else float(value)
        for name, value in values.items()
        if name.startswith("test_")
    }
    return Evaluated(step, epsilon, norm, metrics)


def _number(value: Any, otherwise: float) -> float:
    """A number from JSON, which has null for what is not finite."""
    return otherwise if value is None else float(value)
