"""What came out of the trials of a search, read from their runs.

The runs on the disk are what counts, not what a scheduler remembers of them: a trial that was
forgotten in a crash was charged all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.errors import DpRayError, RunError
from dp_ray.json_text import finite
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.history import History
from dp_ray.privacy.mechanism import Mechanism, mechanism_of
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.search.result import Status, TrialResult
from dp_ray.search.search import TRIAL, Search, TrialRecord, trial_name
from dp_ray.search.space import Point


@dataclass(frozen=True)
class TrialOutcome:
    """How far a trial came.

    Attributes:
        name: of the trial and its run.
        status: finished; failed; unfinished, or stopped early once the search has ended.
        point: where in the space it is.
        plan: what it may spend.
        metrics: those of the objective by name, as last evaluated; null before.
        charged: what was charged, by the ledger; the whole plan if that cannot be read.
        history: the same, as the accountant takes it.
        epsilon: what the accountant says of that.
        steps: updates taken.
        seconds: wall-clock time of its attempts.
        attempts: how often it was started.
        error: why it failed.
    """

    name: str
    status: Status
    point: Point
    plan: PrivacyPlan
    metrics: dict[str, float | None]
    charged: History
    history: History
    epsilon: float
    steps: int
    seconds: float
    attempts: int
    error: str | None

    @property
    def charges(self) -> int:
        """Noised sums paid for."""
        return sum(count for _, _, count in self.charged)

    def result(self) -> TrialResult:
        """Return what the search's result says of it."""
        return TrialResult(
            name=self.name,
            status=self.status,
            parameters=self.point,
            metrics=self.metrics,
            noise_multiplier=self.plan.noise_multiplier,
            steps_planned=self.plan.steps,
            expected_batch_size=self.plan.expected_batch_size,
            max_grad_norm=self.plan.max_grad_norm,
            views=self.plan.views,
            steps=self.steps,
            charges=self.charges,
            epsilon=finite(self.epsilon),
            seconds=round(self.seconds, 2),
            attempts=self.attempts,
            error=self.error,
        )


def read_outcomes(search: Search) -> list[TrialOutcome]:
    """Every trial that was started, in the order of their names.

    Raises:
        RunError: a trial's record is lost or damaged, and nobody can tell what it was.
    """
    folder = search.directory.trials
    found = []
    for name in folder.names():
        record = TrialRecord.read(folder / name) or _lost_record(search, name)
        if record is not None:
            found.append(_outcome(search, name, record))
    return found


def settled(search: Search, outcomes: list[TrialOutcome]) -> list[TrialOutcome]:
    """The outcomes of a search that ended.

    What is unfinished by then was stopped early, and a trial that left no trace has lost it: it
    is charged whole.
    """
    early: Status = "stopped early"
    found = {o.name: replace(o, status=early) if o.status == "unfinished" else o for o in outcomes}
    for index, point in enumerate(search.points or ()):
        name = trial_name(index)
        if name not in found:
            lost = TrialRecord(point, error="its files are lost")
            found[name] = _outcome(search, name, lost, charged_whole=True)
    return [found[name] for name in sorted(found)]


def _lost_record(search: Search, name: str) -> TrialRecord | None:
    """What to go by if a trial's folder has no record."""
    run = RunDirectory(search.directory.trials / name)
    if not run.exists():
        return None  # not begun
    points = {trial_name(index): point for index, point in enumerate(search.points or ())}
    if name not in points:
        raise RunError(
            f"{run.root}/{TRIAL} is lost, and with it what the trial was: restore it from a backup"
        )
    return TrialRecord(points[name], attempts=1, error="its record is lost")


def _outcome(
    search: Search, name: str, record: TrialRecord, *, charged_whole: bool = False
) -> TrialOutcome:
    run = RunDirectory(search.directory.trials / name)
    _, plan = search.budgets.trial_at(record.point)
    mechanism = mechanism_of(plan)
    charged = mechanism.charges() if charged_whole else _spent(run, mechanism)
    history = mechanism.accounted(charged)
    finished = run.finished()
    reached = Result.read(run.root) if finished else _progress(run)
    return TrialOutcome(
        name=name,
        status="finished" if finished else "unfinished" if record.error is None else "failed",
        point=record.point,
        plan=plan,
        metrics={
            name: None if reached is None else reached.metrics.get(name)
            for name in search.objective.metrics
        },
        charged=charged,
        history=history,
        epsilon=epsilon_of(plan.accountant, history, plan.delta),
        steps=_steps(reached),
        seconds=record.seconds,
        attempts=record.attempts,
        error=None if finished else record.error,
    )


def _spent(run: RunDirectory, mechanism: Mechanism) -> History:
    """What the ledger says; what nobody can tell any more is counted whole."""
    resulted = run.root.exists(Result.FILE)
    if not resulted and (not run.exists() or run.is_incomplete()):
        return ()
    try:
        return run.read_ledger().charged
    except DpRayError:
        return mechanism.charges()


def _progress(run: RunDirectory) -> Progress | None:
    try:
        return Progress.read(run.private)
    except RunError:  # there is none, or it is damaged: it decides nothing
        return None


def _steps(reached: Result | Progress | None) -> int:
    if reached is None:
        return 0
    return reached.steps if isinstance(reached, Result) else reached.step


def best_of(search: Search, outcomes: list[TrialOutcome]) -> TrialOutcome | None:
    """The best finished trial; of equal ones the first.

    Trials are independent draws, so "the first" is as random a choice among equals as any, as long
    as its place is not told.
    """
    sign = 1.0 if search.larger_is_better else -1.0
    best, best_value = None, 0.0
    for outcome in outcomes:
        value = outcome.metrics[search.metric]
        if outcome.status != "finished" or value is None:
            continue
        if best is None or sign * value > best_value:
            best, best_value = outcome, sign * value
    return best
