"""What came out of a search: read from the runs of its trials, and published.

The runs on the disk are what counts, not what a scheduler remembers of them: a trial that was
forgotten in a crash was charged all the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from dp_ray.config_file import write_yaml
from dp_ray.errors import DpRayError
from dp_ray.privacy.accounting import History, epsilon_of
from dp_ray.training.evaluation import METRIC_NAMES
from dp_ray.training.plan import PrivacyPlan
from dp_ray.training.release import ASSUMPTIONS, MODEL, STATEMENT, finite
from dp_ray.training.run_directory import CONFIG, PROGRESS, RELEASE, RunDirectory
from dp_ray.tuning.cost import SearchCost, search_cost
from dp_ray.tuning.search import Search, TrialRecord
from dp_ray.tuning.space import Point
from dp_ray.tuning.sweep_directory import BEST, RESULTS

Status = Literal["finished", "unfinished", "stopped early", "failed"]

_CHOICE_ASSUMPTION = next(i for i, text in enumerate(ASSUMPTIONS) if "a search" in text)


@dataclass(frozen=True)
class TrialOutcome:
    """How far a trial came.

    Attributes:
        name: of the trial and its run.
        status: finished; failed; unfinished, or stopped early once the search has ended.
        point: where in the space it is.
        plan: what it may spend.
        metrics: test_accuracy and test_loss, as last evaluated; null before.
        history: what was charged, by the ledger; the whole plan if that cannot be read.
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
    history: History
    epsilon: float
    steps: int
    seconds: float
    attempts: int
    error: str | None

    @property
    def charges(self) -> int:
        """Noised sums paid for."""
        return sum(count for _, _, count in self.history)

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "status": self.status,
            "parameters": self.point,
            **self.metrics,
            "noise_multiplier": self.plan.noise_multiplier,
            "steps_planned": self.plan.steps,
            "expected_batch_size": self.plan.expected_batch_size,
            "max_grad_norm": self.plan.max_grad_norm,
            "views": self.plan.views,
            "steps": self.steps,
            "charges": self.charges,
            "epsilon": finite(self.epsilon),
            "seconds": round(self.seconds, 2),
            "attempts": self.attempts,
            "error": self.error,
        }


def read_outcomes(search: Search) -> list[TrialOutcome]:
    """Every trial that was started, in the order of their names."""
    folder = search.directory.trials
    found = []
    for name in folder.names():
        record = TrialRecord.read(folder / name)
        if record is not None:
            found.append(_outcome(search, name, record))
    return found


def settled(outcomes: list[TrialOutcome]) -> list[TrialOutcome]:
    """The outcomes of a search that ended: what is not there by then was stopped early."""
    early: Status = "stopped early"
    return [replace(o, status=early) if o.status == "unfinished" else o for o in outcomes]


def _outcome(search: Search, name: str, record: TrialRecord) -> TrialOutcome:
    run = RunDirectory(search.directory.trials / name)
    _, plan = search.budgets.trial_at(record.point)
    history = _spent(run, plan)
    finished = run.finished()
    progress = run.read_result() if finished else _progress(run)
    return TrialOutcome(
        name=name,
        status="finished" if finished else "unfinished" if record.error is None else "failed",
        point=record.point,
        plan=plan,
        metrics={metric: progress.get(metric) for metric in METRIC_NAMES},
        history=history,
        epsilon=epsilon_of(plan.accountant, history, plan.delta),
        steps=int(progress.get("steps" if finished else "step", 0)),
        seconds=record.seconds,
        attempts=record.attempts,
        error=None if finished else record.error,
    )


def _spent(run: RunDirectory, plan: PrivacyPlan) -> History:
    if not run.exists():
        return ()
    try:
        return run.read_ledger().history
    except DpRayError:
        return () if run.unborn() else (plan.run,)  # what nobody can tell is counted in full


def _progress(run: RunDirectory) -> dict[str, Any]:
    try:
        progress: dict[str, Any] = json.loads(run.private.read(PROGRESS))
        return progress
    except (OSError, ValueError):
        return {}


def best_of(search: Search, outcomes: list[TrialOutcome]) -> TrialOutcome | None:
    """The best finished trial; of equal ones the first.

    Trials are independent draws, so "the first" is as random a choice among equals as any, as long
    as its place is not told.
    """
    tune = search.sweep.tune
    sign = 1.0 if tune.larger_is_better else -1.0
    best, best_value = None, 0.0
    for outcome in outcomes:
        value = outcome.metrics[tune.metric]
        if outcome.status != "finished" or value is None:
            continue
        if best is None or sign * value > best_value:
            best, best_value = outcome, sign * value
    return best


def publish_search(
    search: Search, outcomes: list[TrialOutcome], *, seconds: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes best.yaml, release/ and private/results.json of a search that came to its end.

    Args:
        search: which.
        outcomes: of all its trials.
        seconds: what it took.

    Returns:
        What result.json may say, and all there is to say. They are equal unless only the best
        trial may be seen: then not even the number of trials is told, on which the bound rests.

    Raises:
        OSError: it cannot be written; the search can be resumed.
    """
    directory, tune = search.directory, search.sweep.tune
    best = best_of(search, outcomes)
    then = None if best is None else search.budgets.full_at(best.point)[1]
    cost = search_cost(search, [outcome.history for outcome in outcomes], then=then)
    told: dict[str, Any] = {
        "name": search.sweep.name,
        "path": str(directory.root),
        "status": "finished",
        "privacy_mode": tune.privacy_mode,
        "epsilon_of_search": cost.epsilon,
        "delta": cost.delta,
        "accountant": cost.accountant,
        "how": cost.how,
        "metric": tune.metric,
        "mode": "max" if tune.larger_is_better else "min",
        "best": None,
    }
    if best is not None:
        told["best"] = _winner(best)
        told["epsilon_with_training"] = cost.with_training
        directory.root.write(BEST, _best_config(search, best, cost).encode())
        _release(search, best, cost)
    everything = {
        **told,
        "trials": [outcome.dump() for outcome in outcomes],
        "best_trial": None if best is None else best.name,
        "seconds": round(seconds, 1),
    }
    directory.private.write(RESULTS, json.dumps(everything, indent=1).encode())
    return (told if tune.only_best_may_be_seen else everything), everything


def _best_config(search: Search, best: TrialOutcome, cost: SearchCost) -> str:
    large, plan = search.budgets.full_at(best.point)
    values = large.model_copy(update={"name": f"{search.sweep.name}-best", "seed": None}).dump()
    values["train"]["storage_path"] = search.storage_path
    return (
        f"# The best trial of {search.sweep.name}"
        + ("" if search.sweep.tune.hold is None else ", at the batch size that it stands for")
        + f".\n# Trained on its own it spends ε = {plan.epsilon:.4f} at δ = {plan.delta:g}; on the "
        f"data of the search,\n# both together spend ε = {cost.with_training:.4f}.\n\n"
        + write_yaml(values)
    )


def _winner(best: TrialOutcome) -> dict[str, Any]:
    values = best.dump()
    return {
        "parameters": values["parameters"],
        **best.metrics,
        "epsilon_of_this_run_alone": values["epsilon"],
        "note": "its own ε is not the cost: epsilon_of_search is",
        **{
            name: values[name]
            for name in ("noise_multiplier", "steps", "expected_batch_size", "max_grad_norm")
        },
    }


def _release(search: Search, best: TrialOutcome, cost: SearchCost) -> None:
    """The winner's release, its statement about the search and not about the run alone."""
    source = search.directory.trials / best.name / RELEASE
    statement = json.loads(source.read(STATEMENT))
    alone = {name: statement.pop(name) for name in ("epsilon", "epsilon_by_accountant")}
    assumptions = list(statement["assumptions"])
    assumptions[_CHOICE_ASSUMPTION] = (
        "The space of the search, and whatever else its file says, was chosen without looking at "
        "the private data."
    )
    if search.sweep.tune.only_best_may_be_seen:
        assumptions.append(
            "Nothing is published of the other trials, or acted upon: not even their number."
        )
    statement = {
        "epsilon": cost.epsilon,
        **statement,
        "accountant": cost.accountant,
        "assumptions": assumptions,
        "search": {
            "privacy_mode": search.sweep.tune.privacy_mode,
            "how": cost.how,
            "of_this_run_alone": {**alone, "note": "not the cost: the model was selected"},
        },
    }
    text = json.dumps(statement, indent=2, ensure_ascii=False) + "\n"
    files = {
        MODEL: source.read(MODEL),
        CONFIG: source.read(CONFIG),
        STATEMENT: text.encode(),
    }
    search.directory.root.publish(RELEASE, files)


def forget_losers(search: Search, outcomes: list[TrialOutcome]) -> None:
    """Removes what only the best trial of a private selection may leave: models and curves."""
    best = best_of(search, outcomes)
    for outcome in outcomes:
        if best is None or outcome.name != best.name:
            RunDirectory(search.directory.trials / outcome.name).forget()
