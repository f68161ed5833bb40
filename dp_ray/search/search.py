"""A search before and while it runs: its trials, drawn beforehand, and what each is trained as."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.run_key import refuse_key_of_seed
from dp_ray.config.run import Config, TrainConfig
from dp_ray.config.search import SweepConfig, TuneConfig
from dp_ray.data.facts import data_facts
from dp_ray.document import encode, read_file
from dp_ray.errors import ConfigError, unknown_name
from dp_ray.keys import KeyedStream, RunKey, public_bytes
from dp_ray.objectives.objective import Direction, Objective, primary_metric
from dp_ray.objectives.registry import build_objective
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.privacy.selection import Distribution, TrialCount
from dp_ray.search.budget import Budgets, check_budget, solve_budgets
from dp_ray.search.directory import SweepDirectory
from dp_ray.search.space import (
    Point,
    check_space,
    config_at,
    corner_points,
    edge_points,
    grid_points,
    point_at,
)
from dp_ray.storage import Folder

TRIAL = "trial.json"

_MOST_TRIALS = 100_000
"""As ``tune.num_samples`` allows without a grid."""

_COUNT, _POINTS = 0, 1  # steps of the search's random stream

_MOST_FOR_POISSON = 10
"""Up to here a Poisson number gives the better best trial at the same ε."""


@dataclass(frozen=True)
class Search:
    """What a trial must know; the same for all of them.

    Attributes:
        sweep: the search as configured.
        directory: where it lives; on storage that all trials see.
        points: of all trials; None if a searcher proposes them as it goes.
        budgets: every budget that a trial may have.
    """

    sweep: SweepConfig
    directory: SweepDirectory
    points: list[Point] | None
    budgets: Budgets

    @classmethod
    def draw(
        cls, sweep: SweepConfig, key: RunKey, tell: Callable[[str], None] = lambda _text: None
    ) -> Search:
        """Draws the trials and solves their budgets; reads no data and writes nothing.

        Args:
            sweep: the search.
            key: its secret, which draws the number of trials and their points; where all trials may
                be seen, a seed draws them.
            tell: told what is going on.

        Raises:
            ConfigError: the space, the budget or the privacy mode do not go together, or the
                scores by which trials are compared would cost privacy that is not counted.
        """
        check_mode(sweep.tune)
        check_space(sweep)
        check_budget(sweep)
        for point in edge_points(sweep.tune.space, sweep.tune.budget_levels):
            config_at(sweep, point)
        sweep = with_metric(sweep)
        points = _draw_points(sweep, key)
        # A private selection is charged for all that it could have drawn.
        fixed = points is not None and sweep.tune.privacy_mode != "private_selection"
        budgets = solve_budgets(sweep, points if fixed else None, tell=tell)
        check_scheduler(sweep, max(plan.steps for plan in budgets.solved.values()))
        check_scores(sweep)
        return cls(sweep, SweepDirectory.of(sweep), points, budgets)

    @classmethod
    def read(cls, sweep: SweepConfig) -> Search:
        """A search that was started.

        Raises:
            ConfigError: an earlier version started it on held-out data; see :func:`check_scores`.
            RunError: see :meth:`SweepDirectory.read_search`.
        """
        sweep = with_metric(sweep)
        check_scores(sweep)
        directory = SweepDirectory.of(sweep)
        points, budgets = directory.read_search(sweep)
        seed = sweep.training.get("seed")
        if isinstance(seed, int) and not directory.is_replay():
            refuse_key_of_seed(directory.key(), seed)
        return cls(sweep, directory, points, budgets)

    @property
    def objective(self) -> Objective:
        """What all trials learn."""
        return _objective_of(self.sweep)

    @property
    def metric(self) -> str:
        """Name of the metric that trials are compared by."""
        return self.sweep.tune.metric or primary_metric(self.objective)

    @property
    def mode(self) -> Direction:
        """Whether the best trial is the one with the largest metric, or the smallest."""
        return self.sweep.tune.mode or self.objective.metrics[self.metric]

    @property
    def larger_is_better(self) -> bool:
        """Whether the best trial is the one with the largest metric."""
        return self.mode == "max"

    @property
    def most_trials(self) -> int:
        """Trials that there will be."""
        return self.sweep.tune.num_samples if self.points is None else len(self.points)

    def example(self) -> Config:
        """What one of the trials may be trained as: all need the same resources."""
        space, levels = self.sweep.tune.space, self.sweep.tune.budget_levels
        return self.budgets.trial_at((self.points or corner_points(space, levels))[0])[0]

    def proposed(self, shares: dict[str, float]) -> Point:
        """The point that a searcher means by a place in the unit cube."""
        return point_at(self.sweep.tune.space, self.sweep.tune.budget_levels, shares)

    def trial(self, name: str, point: Point) -> tuple[Config, PrivacyPlan]:
        """What a trial is trained as, and what it may spend.

        Args:
            name: of the trial; its run has the same.
            point: where in the space.

        Raises:
            ConfigError: a value that cannot be used.
        """
        config, plan = self.budgets.trial_at(point)
        train = config.train.model_copy(update={"storage_path": self.directory.trials.uri})
        # One seed for all of them: initial parameters of its own would tell the best one's place.
        return config.model_copy(update={"train": train, "name": name}), plan

    def begin(self, run: RunDirectory, config: Config, plan: PrivacyPlan) -> None:
        """Lays out a trial's run; its key is its own, or in a replay follows from the search's.

        Raises:
            RunError: see :meth:`~dp_ray.artifacts.run_directory.RunDirectory.create`.
        """
        run.create(config, plan, replay=self.directory.replay_of(f"trial {config.name}"))


def with_metric(sweep: SweepConfig) -> SweepConfig:
    """Return the search with the metric that trials are compared by filled in.

    Raises:
        ConfigError: the objective has no such metric, or cannot be built.
    """
    objective = _objective_of(sweep)
    metric = sweep.tune.metric or primary_metric(objective)
    if metric not in objective.metrics:
        raise unknown_name(
            "tune.metric", metric, "the objective has no such metric", objective.metrics
        )
    return replace(sweep, tune=sweep.tune.model_copy(update={"metric": metric}))


def _objective_of(sweep: SweepConfig) -> Objective:
    """The objective, which no point of the space changes."""
    corner = corner_points(sweep.tune.space, sweep.tune.budget_levels)[0]
    config = config_at(sweep, corner)
    return build_objective(config.objective, data_facts(config.data).num_classes)


def trial_name(index: int) -> str:
    """The name of a trial that was drawn beforehand."""
    return f"{index:04d}"


def check_mode(tune: TuneConfig) -> None:
    """Refuses what a private selection cannot be charged for.

    Raises:
        ConfigError: its trials would not be independent draws of one distribution.
    """
    if tune.privacy_mode != "private_selection":
        return
    remedy = (
        "Use tune.searcher random, no scheduler; or tune.privacy_mode compose (every trial is "
        "charged), or public (the data is)"
    )
    if tune.searcher != "random":
        reason = {
            "grid": "a grid is no random draw",
            "optuna": "Optuna chooses a trial by what the ones before released",
        }[tune.searcher]
        raise ConfigError(
            "tune.searcher",
            tune.searcher,
            f"private_selection needs independent trials from one distribution, and {reason}",
            remedy,
        )
    if tune.scheduler != "none":
        raise ConfigError(
            "tune.scheduler",
            tune.scheduler,
            "private_selection needs independent trials, and early stopping compares them while "
            "they run",
            remedy,
        )


def check_scores(sweep: SweepConfig) -> None:
    """Refuses to compare trials by exact scores of data that is not public.

    ε covers the training examples. Which trial is published, or stopped, is a function of scores on
    the test split, and one test example can decide it.

    Raises:
        ConfigError: the test split is not declared public.
    """
    data = sweep.training.get("data")
    declared = data.get("evaluation", "held_out") if isinstance(data, dict) else None
    if declared != "public":
        raise ConfigError(
            "data.evaluation",
            declared,
            f"trials are compared by {sweep.tune.metric} on the test split, so one test image can "
            "decide which of them is published, and nothing is charged for that",
            "Give a test split of public images and set data.evaluation to public; or, without "
            "any, train one configuration that was found on other, public data",
        )


def check_scheduler(sweep: SweepConfig, steps: int) -> None:
    """Refuses what Ray's scheduler would refuse, or could not act upon.

    Args:
        sweep: the search.
        steps: T of its longest trial.

    Raises:
        ConfigError: no trial is evaluated often enough to be stopped.
    """
    tune = sweep.tune
    if tune.scheduler == "none":
        return
    train = sweep.training.get("train") or {}
    every = TrainConfig.model_validate(train).steps_between_evaluations(steps)
    evaluations = math.ceil(steps / every)
    if tune.grace_evaluations > evaluations:
        raise ConfigError(
            "tune.grace_evaluations",
            tune.grace_evaluations,
            f"a trial of {steps} steps is evaluated {evaluations} times, every {every} steps",
            f"Use at most {evaluations}, a lower train.evaluate_every, or tune.scheduler none",
        )


def trial_count(tune: TuneConfig) -> TrialCount:
    """The distribution of the number of trials of a private selection."""
    cheaper: Distribution = "poisson" if tune.num_samples <= _MOST_FOR_POISSON else "geometric"
    return TrialCount(tune.distribution or cheaper, float(tune.num_samples), tune.shape)


def _draw_points(sweep: SweepConfig, key: RunKey) -> list[Point] | None:
    tune, secret = sweep.tune, key.derive("search")
    seed = sweep.training.get("seed")
    if seed is not None and not tune.only_best_may_be_seen:  # what all may see, a seed may decide
        secret = public_bytes(seed, "search")
    if tune.searcher == "optuna":
        return None
    count = tune.num_samples
    if tune.privacy_mode == "private_selection":
        stream = KeyedStream(secret, incarnation=0, step=_COUNT)
        count = trial_count(tune).draw(float(stream.uniform(np.zeros(1, np.uint64), 1)[0, 0]))
    grids = [len(d.grid) for d in tune.space.values() if d.grid] if tune.searcher == "grid" else []
    if count * math.prod(grids) > _MOST_TRIALS:
        raise ConfigError(
            "tune.num_samples",
            tune.num_samples,
            f"with {math.prod(grids)} points of the grid that is {count * math.prod(grids)} trials",
            f"Search fewer than {_MOST_TRIALS}",
        )
    grid = list(grid_points(tune.space)) if tune.searcher == "grid" else [{}]
    fixed = [point for _ in range(count) for point in grid]
    stream = KeyedStream(secret, incarnation=0, step=_POINTS)
    drawn = stream.uniform(np.arange(len(fixed), dtype=np.uint64), len(tune.space))
    points = []
    for point, numbers in zip(fixed, drawn.tolist(), strict=True):
        shares = dict(zip(tune.space, numbers, strict=True))
        random = point_at(tune.space, tune.budget_levels, shares)
        points.append({field: point.get(field, random[field]) for field in tune.space})
    return points


@dataclass(frozen=True)
class TrialRecord:
    """What a trial leaves beside its run.

    Attributes:
        point: where in the space it is.
        attempts: how often it was started.
        seconds: wall-clock time of all attempts that ended.
        error: why the last attempt failed.
    """

    FORMAT: ClassVar[int] = 1

    point: Point
    attempts: int = 0
    seconds: float = 0.0
    error: str | None = None

    def write(self, run: RunDirectory) -> None:
        """Writes it down, in the trial's folder.

        Raises:
            OSError: it cannot be written.
        """
        run.root.write(TRIAL, encode(asdict(self), self.FORMAT, indent=None))

    @classmethod
    def read(cls, folder: Folder) -> TrialRecord | None:
        """A trial's record; None if it has none yet.

        Raises:
            RunError: it is damaged.
        """
        if not folder.exists(TRIAL):
            return None
        return read_file(
            folder, TRIAL, cls.FORMAT, lambda values, _: cls(**values), "Restore it from a backup"
        )
