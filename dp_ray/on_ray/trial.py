"""What Ray Tune runs for each trial: one run, begun or taken up, its releases reported."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.errors import DpRayError, RunError
from dp_ray.objectives.objective import worst
from dp_ray.on_ray.job import for_log
from dp_ray.on_ray.session import node_name
from dp_ray.on_ray.trainer import train_on_ray
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.search.resources import is_nested
from dp_ray.search.search import Search, TrialRecord, trial_name
from dp_ray.search.space import Point
from dp_ray.training.local import train_in_process
from dp_ray.training.opening import take_up
from dp_ray.training.task import Task

INDEX = "trial"
"""The one parameter that Tune knows of trials that were drawn beforehand."""


class _TuneReports:
    """Hands releases to Ray Tune, for its scheduler and searcher."""

    def report(self, metrics: dict[str, float]) -> None:
        """See :class:`~dp_ray.training.loop.Observer`."""
        tune.report(metrics)


def train_driver_fn(
    config: dict[str, Any],
    *,
    search: Search,
    threads: int,
    attempt: str,
    break_lock: bool = False,
) -> None:
    """Runs one trial to its end; a trial that was begun before goes on, a finished one is told.

    Args:
        config: ``{"trial": index}`` of a trial that was drawn beforehand, or a searcher's place in
            the unit cube, field by field.
        search: what is searched.
        threads: torch threads of each worker, unless configured.
        attempt: names this call of ``dp-ray tune``: a trial that Tune starts anew, on another node
            perhaps, takes the lock of its earlier process, which an object store keeps.
        break_lock: take the trial over from a process that is known to be gone.
    """
    name, point = _identify(config, search)
    trial, plan = search.trial(name, point)
    run = RunDirectory.of(trial)
    record = TrialRecord.read(run.root) or TrialRecord(point)
    record = replace(record, attempts=record.attempts + 1, error=None)
    started = time.monotonic()
    if not run.finished():
        record.write(run)
        try:
            _train(search, run, trial, plan, threads, attempt, break_lock=break_lock)
        except DpRayError as error:
            told = for_log(error, run.private)
            record = replace(record, error=str(told))
            raise told from None
        except Exception as error:
            record = replace(record, error=str(error))
            raise
        finally:  # also if the scheduler ends it
            seconds = record.seconds + time.monotonic() - started
            replace(record, seconds=seconds).write(run)
    # Also what the last evaluation said: Tune may have missed it in a crash.
    tune.report(_last_metrics(search, run))


def _identify(config: dict[str, Any], search: Search) -> tuple[str, Point]:
    if INDEX in config:
        index = int(config[INDEX])
        assert search.points is not None
        return trial_name(index), search.points[index]
    name = tune.get_context().get_trial_id()
    record = TrialRecord.read(search.directory.trials / name)
    return name, search.proposed(config) if record is None else record.point


def _train(
    search: Search,
    run: RunDirectory,
    config: Config,
    plan: PrivacyPlan,
    threads: int,
    attempt: str,
    *,
    break_lock: bool,
) -> None:
    if run.exists() and run.is_incomplete():
        run.root.delete("private")  # cut off while it was laid out: nothing was charged
    if run.exists():
        config, plan = take_up(run, config, attempt, lambda _text: None, break_lock=break_lock)
    else:
        search.begin(run, config, plan)
    if config.cluster.threads_per_worker is None:
        cluster = config.cluster.model_copy(update={"threads_per_worker": threads})
        config = config.model_copy(update={"cluster": cluster})
    # Nobody can be asked; what a search costs is counted from its trials' ledgers.
    task = Task(config, plan, run, attempt, accepted=math.inf)
    if is_nested(config.cluster):
        train_on_ray(task, [TuneReportCallback()])
    else:
        train_in_process(task, _TuneReports(), node=node_name(config.cluster))


def _last_metrics(search: Search, run: RunDirectory) -> dict[str, float]:
    result, metrics = Result.read(run.root), search.objective.metrics
    if all(result.metrics.get(name) is None for name in metrics):
        raise RunError(
            f"{run.root}: there are no test examples, so trials cannot be compared: give the data "
            "a test split"
        )
    # JSON has no infinity: a loss that is null was one.
    found = {name: worst(direction) for name, direction in metrics.items()}
    found |= {n: v for n, v in result.metrics.items() if n in metrics and v is not None}
    epsilon = math.inf if result.epsilon is None else result.epsilon
    return {"step": float(result.steps), "epsilon": epsilon, **found}
