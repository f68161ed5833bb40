"""What came out of a search: results.json, all of it, and result.json, what everybody may see."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from dp_ray.artifacts.result import Ending
from dp_ray.artifacts.times import roughly
from dp_ray.document import Scored
from dp_ray.search.space import Point

Status = Literal["finished", "unfinished", "stopped early", "failed"]


InfiniteIfNull = Annotated[
    float, BeforeValidator(lambda value: math.inf if value is None else value)
]
"""ε, for which JSON has null where it is infinite."""


class TrialResult(Scored):
    """How far a trial of a search came.

    Attributes:
        name: of the trial and its run.
        status: finished, failed, unfinished, or stopped early by the scheduler.
        parameters: where in the space it is.
        noise_multiplier: σ.
        steps_planned: T.
        expected_batch_size: B̄.
        max_grad_norm: C.
        views: K.
        steps: updates taken.
        charges: noised sums paid for.
        epsilon: of them; None without noise.
        seconds: wall-clock time of its attempts.
        attempts: how often it was started.
        error: why the last attempt failed.
    """

    name: str
    status: Status
    parameters: Point
    noise_multiplier: float
    steps_planned: int
    expected_batch_size: int
    max_grad_norm: float
    views: int
    steps: int
    charges: int
    epsilon: float | None
    seconds: float
    attempts: int
    error: str | None


class Winner(Scored):
    """The best trial of a search, without its place among the others.

    Attributes:
        parameters: where in the space it is.
        epsilon_of_this_run_alone: which is not the cost of the model.
        note: says so.
        noise_multiplier: σ.
        steps: updates taken.
        expected_batch_size: B̄.
        max_grad_norm: C.
    """

    parameters: Point
    epsilon_of_this_run_alone: float | None
    note: str
    noise_multiplier: float
    steps: int
    expected_batch_size: int
    max_grad_norm: float

    @classmethod
    def of(cls, trial: TrialResult) -> Winner:
        """Return what may be seen of the best trial."""
        return cls(
            parameters=trial.parameters,
            metrics=trial.metrics,
            epsilon_of_this_run_alone=trial.epsilon,
            note="its own ε is not the cost: epsilon_of_search is",
            noise_multiplier=trial.noise_multiplier,
            steps=trial.steps,
            expected_batch_size=trial.expected_batch_size,
            max_grad_norm=trial.max_grad_norm,
        )


class SearchSummary(Ending):
    """result.json of a search; everybody may see it, if the test split may be published.

    A search that was stopped has the first fields only. Where only the best trial may be seen,
    nothing tells of the others.

    Attributes:
        privacy_mode: how the search is counted.
        epsilon_of_search: of all trials.
        delta: δ.
        epsilon_with_training: of the search and one training of best.yaml.
        accountant: that counted.
        how: by which theorem.
        warning: of a search that repeats another one.
        metric: by which trials are compared.
        mode: whether ``max`` or ``min`` of it is best.
        best: the best trial; None if there was no trial.
        best_trial: its name.
        trials: all of them.
        seconds: that the last session took.
    """

    privacy_mode: str
    epsilon_of_search: InfiniteIfNull
    delta: float
    epsilon_with_training: InfiniteIfNull | None = None
    accountant: str | None = None
    how: str | None = None
    warning: str | None = None
    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    best: Winner | None = None
    best_trial: str | None = None
    trials: list[TrialResult] | None = None
    seconds: float | None = None


class SearchResult(SearchSummary):
    """results.json of a finished search; private where only the best trial may be seen."""

    FILE: ClassVar[str] = "results.json"
    REMEDY: ClassVar[str] = "Restore it from a backup: it says which trial may be published"

    epsilon_with_training: InfiniteIfNull
    accountant: str
    how: str
    warning: str | None
    metric: str
    mode: Literal["max", "min"]
    best: Winner | None
    best_trial: str | None
    trials: list[TrialResult]
    seconds: float

    def with_rough_times(self) -> SearchResult:
        """Return the result with times that do not show how many examples joined the steps."""
        trials = [t.model_copy(update={"seconds": roughly(t.seconds)}) for t in self.trials]
        return self.model_copy(update={"trials": trials, "seconds": roughly(self.seconds)})

    def summary(self, *, only_best_may_be_seen: bool) -> SearchSummary:
        """Return what everybody may see.

        Args:
            only_best_may_be_seen: leave out whatever tells of another trial: its place among
                them, how long they took, and how many there were, on which the bound rests.
        """
        values: dict[str, Any] = self.with_rough_times().dump()
        if only_best_may_be_seen:
            values = {
                k: v for k, v in values.items() if k not in ("best_trial", "trials", "seconds")
            }
        return SearchSummary.model_validate(values)
