"""Ray Tune: resources planned, a Tuner built or restored, and run until it ends or is stopped."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from dp_ray.config.run import Config
from dp_ray.on_ray.room import await_room
from dp_ray.on_ray.session import ray_session, training_environment
from dp_ray.on_ray.trial import INDEX, train_driver_fn
from dp_ray.search.directory import RAY
from dp_ray.search.resources import is_nested, threads_of_worker, trials_at_once
from dp_ray.search.search import Search

_CPUS_OF_DRIVERS = 1
_CPUS_OF_DRIVER = 0.01
"""A driver waits for its workers; Tune asks for more than nothing. Kept free for all of them."""


def tune_on_ray(
    search: Search,
    example: Config,
    *,
    tell: Callable[[str], None],
    break_lock: bool = False,
) -> bool:
    """Runs a search's trials, or those that are left of it; the main thread's business.

    Args:
        search: what is searched; laid out on the disk.
        example: the training configuration of one trial, for the resources that all need.
        tell: told what the trials wait for.
        break_lock: take trials over from processes that are known to be gone.

    Returns:
        False if it was stopped by a signal.

    Raises:
        DpRayError: Ray cannot be reached, or a trial does not fit.
    """
    nested = is_nested(example.cluster)
    spare = _CPUS_OF_DRIVERS if nested else 0
    session = ray_session(example.cluster, spare_cpus=spare, environment=training_environment())
    with _quiet(), _interrupt_on_sigterm(), session:
        await_room(example.cluster, tell)
        resources = ray.cluster_resources()
        resources["CPU"] -= _CPUS_OF_DRIVERS if nested else 0
        at_once = trials_at_once(search.sweep.tune, example.cluster, resources)
        trainable = tune.with_resources(
            functools.partial(
                train_driver_fn,
                search=search,
                threads=threads_of_worker(example.cluster, at_once),
                attempt=secrets.token_hex(8),
                break_lock=break_lock,
            ),
            {"CPU": _CPUS_OF_DRIVER} if nested else example.cluster.worker_resources,
        )
        folder = f"{search.directory.private.uri}/{RAY}"
        if tune.Tuner.can_restore(folder):
            tuner = tune.Tuner.restore(
                folder, trainable=trainable, resume_unfinished=True, resume_errored=True
            )
        else:
            tuner = _new_tuner(search, trainable, at_once)
        with _stop_on_signal() as stopped:
            tuner.fit()
        return not stopped()


def _new_tuner(search: Search, trainable: Callable[..., None], at_once: int) -> tune.Tuner:
    sweep = search.sweep.tune
    space: dict[str, Any] = {}
    if search.points is not None:
        space = {INDEX: tune.grid_search(list(range(len(search.points))))}
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=search.metric,
            mode=search.mode,
            search_alg=_searcher(search),
            scheduler=_scheduler(search),
            num_samples=1 if search.points is not None else sweep.num_samples,
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=search.directory.private.uri,
            name=RAY,
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            verbose=0,
        ),
    )


def _searcher(search: Search) -> Searcher | None:
    """Optuna's TPE, in the unit cube; None where all trials were drawn beforehand."""
    if search.points is not None:
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space: dict[str, Any] = {}
    for field, domain in search.sweep.tune.space.items():
        if domain.values is None:
            space[field] = tune.uniform(0.0, 1.0)
        else:  # values without an order
            count = len(domain.values)
            space[field] = tune.choice([(i + 0.5) / count for i in range(count)])
    seed = int.from_bytes(search.directory.key().derive("searcher")[:4], "little")
    return OptunaSearch(space=space, metric=search.metric, mode=search.mode, seed=seed)


def _scheduler(search: Search) -> TrialScheduler | None:
    """Compares trials after equal shares of their runs: an evaluation is a tenth of a run."""
    sweep = search.sweep.tune
    if sweep.scheduler == "none":
        return None
    return ASHAScheduler(
        time_attr="training_iteration",
        # More evaluations than any run has: no trial is stopped for its length alone.
        max_t=2 + max(plan.steps for plan in search.budgets.solved.values()),
        grace_period=sweep.grace_evaluations,
        reduction_factor=sweep.reduction_factor,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune's own notes and tables stay away: dp-ray shows its own.

    What Tune keeps in Ray's temporary folder tells of all trials: it is for its owner alone.
    """
    umask = os.umask(0o077)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
        os.umask(umask)


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C, before there are trials and after them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM: Tune saves what it knows and ends. Twice: at once.

    Tune listens to SIGUSR1 itself.
    """
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGUSR1)

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
