"""``dp_ray.tune``: one search from its configuration to its results."""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dp_ray.api.checks import check_search
from dp_ray.api.dispatch import Dispatcher
from dp_ray.api.objects import AnyObjective, Data, Model, Objects
from dp_ray.artifacts.result_directory import refuse_changes
from dp_ray.config.cluster import ClusterConfig
from dp_ray.config.files import set_field
from dp_ray.config.run import Config
from dp_ray.config.search import SweepConfig
from dp_ray.config.validation import validate
from dp_ray.data.cache import cache_path
from dp_ray.errors import ConfigError, DataError, RunError
from dp_ray.keys import RunKey
from dp_ray.ledger.lock import OWNER_ENDS_S, WriterLock
from dp_ray.on_ray.environment import check_environment, located, prepare_environment
from dp_ray.on_ray.job import errors_for_log
from dp_ray.reporting.callbacks import Callback
from dp_ray.reporting.make import search_report
from dp_ray.reporting.search import describe_search
from dp_ray.search.cost import search_cost
from dp_ray.search.directory import REPORT, SweepDirectory
from dp_ray.search.outcome import read_outcomes
from dp_ray.search.publish import decide, forget_losers, publish_search, read_decision
from dp_ray.search.resources import resources_here, trials_at_once
from dp_ray.search.result import SearchResult, SearchSummary
from dp_ray.search.search import Search, with_metric
from dp_ray.search.space import edge_points
from dp_ray.storage import LocalFolder
from dp_ray.training.opening import try_data
from dp_ray.training.preparation import check_feasible

_MAY_CHANGE = (
    "cluster.",
    "train.",
    "data.root",
    "data.cache",
    "data.download",
)
"""What a search may be resumed with otherwise."""


def tune(
    search: SweepConfig,
    *,
    model: Model | None = None,
    data: Data | None = None,
    objective: AnyObjective | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    break_lock: bool = False,
) -> SearchSummary:
    """Search fields of a configuration at an equal privacy budget, and count what it costs.

    Results go to ``<train.storage_path>/<name>``: ``release/`` may be published, ``private/`` must
    not be. The ε of the search is the cost; the best trial's own ε is not.

    Args:
        search: what to search; see :func:`dp_ray.load_sweep`.
        model: a function or class that can be imported; see :func:`dp_ray.train`. Trials run in
            other processes, so other objects are refused.
        data: likewise.
        objective: likewise.
        callbacks: what follows the search; see :class:`dp_ray.Callback`. A search is not stopped
            by one that fails, which is raised at its end.
        resume: continue a search that was stopped or that crashed, without running a finished
            trial again.
        break_lock: with ``resume``, take the search over from a process that is known to be dead.

    Returns:
        What ``result.json`` holds; its ``status`` is ``stopped`` if the search can be resumed.

    Raises:
        DpRayError: before anything is started where possible; see the message.
    """
    training = Objects(model, data, objective).put_into_values(search.training)
    return run_sweep(
        replace(search, training=training),
        resume=resume,
        callbacks=callbacks,
        break_lock=break_lock,
    )


def plan_sweep(
    sweep: SweepConfig, callbacks: Sequence[Callback] = (), *, replay: RunKey | None = None
) -> tuple[Search, RunKey]:
    """Draws a search and checks its trials; reads no data and writes nothing.

    Args:
        sweep: what to search.
        callbacks: what follows it.
        replay: see :func:`run_sweep`.

    Returns:
        The search, and the secret that it was drawn with.

    Raises:
        ConfigError: what cannot be searched; see the message.
    """
    with Dispatcher(callbacks) as dispatcher:
        drawn = _draw(sweep, dispatcher, replay)
        dispatcher.send("on_end", None)
    dispatcher.check(finished=False)
    return drawn


def _draw(
    sweep: SweepConfig, dispatcher: Dispatcher, replay: RunKey | None
) -> tuple[Search, RunKey]:
    seed = sweep.training.get("seed")
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise ConfigError("seed", seed, "not a whole number from 0", "Leave it out, or give one")
    key = replay or RunKey.from_entropy()
    dispatcher.send("on_status", "drawing trials")
    search = Search.draw(sweep, key, tell=lambda text: dispatcher.send("on_status", text))
    dispatcher.send("on_status", "checking trials")
    _check_trials(search)
    return search, key


def run_sweep(
    sweep: SweepConfig,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    break_lock: bool = False,
    replay: RunKey | None = None,
) -> SearchSummary:
    """Search, and return what result.json holds.

    Args:
        sweep: what to search.
        resume: go on with a search that was stopped or that crashed.
        callbacks: what follows the search.
        break_lock: with ``resume``, take the search over from a process that is known to be gone.
        replay: the key of another search, to repeat its trials with their draws and noise.

    Returns:
        What result.json holds; its ``status`` is ``stopped`` if the search can be resumed.

    Raises:
        DpRayError: before anything is started where possible; see the message.
    """
    check_search(sweep)
    sweep = _located(sweep)
    directory = SweepDirectory.of(sweep)
    with Dispatcher(callbacks) as dispatcher:
        if resume:
            _check_resumable(directory, sweep)
            with _locked(directory, take_over=break_lock):
                summary = _run(Search.read(sweep), dispatcher, break_lock=break_lock)
        else:
            summary = _begin(directory, sweep, dispatcher, replay)
        dispatcher.send("on_end", summary)
    dispatcher.check(finished=summary.status == "finished")
    return summary


def _begin(
    directory: SweepDirectory, sweep: SweepConfig, dispatcher: Dispatcher, replay: RunKey | None
) -> SearchSummary:
    directory.check_free()
    search, key = _draw(sweep, dispatcher, replay)
    example = search.example()
    with errors_for_log(LocalFolder(cache_path(example.data))):
        _try_data(example, dispatcher.message)
    directory.lay_out()
    with _locked(directory):
        directory.check_free()  # still
        directory.create(sweep, key, search.points, search.budgets, replay=replay is not None)
        return _run(search, dispatcher)


@contextmanager
def _locked(directory: SweepDirectory, *, take_over: bool = False) -> Iterator[None]:
    lock = WriterLock(
        directory.private, secrets.token_hex(8), wait_s=OWNER_ENDS_S, take_over=take_over
    )
    try:
        yield
    finally:
        lock.release()


def _run(search: Search, dispatcher: Dispatcher, *, break_lock: bool = False) -> SearchSummary:
    result = read_decision(search)
    if result is None:
        spent = [outcome.history for outcome in read_outcomes(search)]
        cost = search_cost(search, spent if search.sweep.tune.is_adaptive else None)
        dispatcher.message(describe_search(search, cost))
        started = time.monotonic()
        dispatcher.send("on_search", search, cost.epsilon)
        ended = _run_trials(search, dispatcher.message, break_lock=break_lock)
        if not ended:
            return _stopped(search)
        result = decide(search, seconds=time.monotonic() - started)
    return _conclude(search, result)


def _run_trials(search: Search, tell: Callable[[str], None], *, break_lock: bool) -> bool:
    """False if some are left, because the search was stopped."""
    if search.points == []:
        return True
    example = search.example()
    prepare_environment(example.cluster)
    from dp_ray.on_ray.tuner import tune_on_ray  # imports Ray

    if not tune_on_ray(search, example, tell=tell, break_lock=break_lock):
        return False
    unfinished = any(outcome.status == "unfinished" for outcome in read_outcomes(search))
    return search.sweep.tune.scheduler != "none" or not unfinished


def _stopped(search: Search) -> SearchSummary:
    cost = search_cost(search, [outcome.history for outcome in read_outcomes(search)])
    summary = SearchSummary(
        name=search.sweep.name,
        path=str(search.directory.root),
        status="stopped",
        privacy_mode=search.sweep.tune.privacy_mode,
        epsilon_of_search=cost.epsilon,
        delta=cost.delta,
    )
    summary.write(search.directory.root)
    return summary


def _conclude(search: Search, result: SearchResult) -> SearchSummary:
    """Publishes what was decided; each part may be repeated after a crash."""
    directory = search.directory
    summary = publish_search(search, result)
    place, page = search_report(directory, result)
    place.write(REPORT, page.encode())
    forget_losers(search, result)
    summary.write(directory.root)  # the last: it says that all is there
    return summary


def _check_resumable(directory: SweepDirectory, sweep: SweepConfig) -> None:
    started = directory.sweep()
    if directory.finished():
        raise RunError(directory.taken())
    directory.check_private()
    # An earlier version wrote the default metric down.
    old, new = (_deciding(with_metric(s)) for s in (started, sweep))
    refuse_changes(old, new, "search")


def _deciding(sweep: SweepConfig) -> dict[str, Any]:
    """Return the fields that may not change between sessions, by dotted path."""
    fields = dict(_fields(sweep.dump()))
    return {name: value for name, value in fields.items() if not name.startswith(_MAY_CHANGE)}


def _fields(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def _located(sweep: SweepConfig) -> SweepConfig:
    """Return the search with the cluster that its trials run on, once that is checked."""
    configured = validate(ClusterConfig, sweep.training.get("cluster") or {}, "cluster.")
    cluster = located(configured)
    check_environment(cluster)
    if cluster.address == configured.address:
        return sweep
    training = copy.deepcopy(sweep.training)
    set_field(training, "cluster.address", cluster.address)
    return SweepConfig(sweep.name, training, sweep.tune)


def _check_trials(search: Search) -> None:
    """What is wrong with a trial shows before any of them is started."""
    space, levels = search.sweep.tune.space, search.sweep.tune.budget_levels
    points = search.points or edge_points(space, levels)
    seen = set()
    for point in points:
        config, plan = search.budgets.trial_at(point)
        config = _with_neighbours(search, config)
        decisive = config.model_dump_json(include={"augment", "model", "optimizer", "train"})
        if decisive not in seen:
            check_feasible(config, plan.steps)
        seen.add(decisive)


def _with_neighbours(search: Search, config: Config) -> Config:
    """As if the trials at a time were workers of one run: they share the machine's memory."""
    cluster = config.cluster
    if cluster.address is not None:
        return config
    # Other resources than CPUs and GPUs are Ray's to know.
    known = cluster.model_copy(update={"resources_per_worker": {}, "accelerator_type": None})
    at_once = trials_at_once(search.sweep.tune, known, resources_here(cluster))
    workers = at_once * max(cluster.max_workers, 1)
    return config.model_copy(
        update={"cluster": cluster.model_copy(update={"num_workers": workers})}
    )


def _try_data(config: Config, tell: Callable[[str], None]) -> None:
    """Check that trials can be compared, if they run on this machine."""
    dataset = try_data(config, tell)
    if dataset is not None and len(dataset.test) == 0:
        raise DataError(
            f"data.name = {config.data.name!r} has no test examples, by which trials are compared: "
            "give it a test split"
        )
