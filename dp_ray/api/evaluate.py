"""``dp_ray.evaluate``: how good a released model is on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from dp_ray.api.objects import AnyObjective, Data, Model, Objects
from dp_ray.data.store import Examples
from dp_ray.objectives.objective import metrics_in
from dp_ray.on_ray.job import errors_for_log
from dp_ray.reporting.evaluation import describe_evaluation
from dp_ray.training.evaluate_run import evaluate_run


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of a released model on the test split, which ε does not cover.

    Printed, it is what ``dp-ray evaluate`` shows.

    Attributes:
        metrics: by name, the objective's primary one first; None for one that is not finite.
        test_examples: how many there are.
        facts: all figures by name, as ``dp-ray evaluate --json`` has them: accuracy by class,
            calibration, confusions.
        examples: columns [N] or [N, …] by name, a row for each test example: label, prediction,
            confidence, loss; private.
        test: the split that these are of: ``test.read(ids)`` gives images and labels.
    """

    metrics: Mapping[str, float | None]
    test_examples: int
    facts: dict[str, Any]
    examples: dict[str, NDArray[Any]] = field(repr=False)
    test: Examples = field(repr=False)

    @property
    def accuracy(self) -> float | None:
        """Share of the test examples that the model is right on; None for other objectives."""
        return self.metrics.get("test_accuracy")

    def __str__(self) -> str:
        return describe_evaluation(self.facts)


def evaluate(
    run: str,
    overrides: Sequence[str] = (),
    *,
    model: Model | None = None,
    data: Data | None = None,
    objective: AnyObjective | None = None,
    own_code: bool = False,
) -> EvaluationResult:
    """Evaluate a released model on the test split.

    Args:
        run: path or URI of a run, or of a release folder that was copied elsewhere. A
            :class:`dp_ray.Run` has a method of the same name.
        overrides: ``field=value``, for example ``data.root=…``, where the data is on this machine.
        model: the network, if the run was passed one that cannot be imported.
        data: likewise, the data.
        objective: likewise, the objective.
        own_code: run code that the files name (network, objective, data), though you have not
            trained with it on this machine; only if you trust who wrote them.

    Returns:
        The metrics, and further figures of the objective.

    Raises:
        DpRayError: there is no release, or the data cannot be read.
    """
    objects = Objects(model, data, objective)
    with errors_for_log():
        found = evaluate_run(run, list(overrides), objects.put_into_this_process, own_code=own_code)
    facts = found.figures
    count = facts["test_examples"]
    return EvaluationResult(metrics_in(facts), count, facts, found.examples, found.test)
