"""``dp_ray.train``: one run from its configuration to its results."""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dp_ray.api.checks import check_cluster
from dp_ray.api.dispatch import Dispatcher, RunWatch
from dp_ray.api.objects import AnyObjective, Data, Model, Objects
from dp_ray.api.run import Run
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.run_key import read_replay_key
from dp_ray.config.run import Config
from dp_ray.data.cache import cache_path
from dp_ray.errors import ConfigError
from dp_ray.keys import RunKey
from dp_ray.on_ray.early import EarlyRay
from dp_ray.on_ray.environment import prepare_environment
from dp_ray.on_ray.job import errors_for_log
from dp_ray.performance.threads import usable_cores
from dp_ray.reporting.callbacks import Callback
from dp_ray.reporting.words import count
from dp_ray.storage import LocalFolder
from dp_ray.training.local import NullObserver, train_in_process
from dp_ray.training.opening import begin, take_up
from dp_ray.training.probe import Probe
from dp_ray.training.task import Task


def train(
    config: Config,
    *,
    model: Model | None = None,
    data: Data | None = None,
    objective: AnyObjective | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    break_lock: bool = False,
    accept_charges: int | None = None,
    profile: bool = False,
    replay_key: str | Path | None = None,
) -> Run:
    """Train a model within its privacy budget.

    Results go to ``<train.storage_path>/<name>``: ``release/`` may be published, ``private/`` must
    not be. In the main thread Ctrl-C stops the run after the step at hand, with a checkpoint: the
    returned run's status is then ``stopped``, and it can be resumed.

    A network, data or an objective may be passed as Python objects. A function or class that can be
    imported is used by its import path, in any place. Any other object is used in this process
    alone (``cluster.num_workers: 0``); the configuration of the release says ``<object>`` for it,
    and a run is resumed with an equal one only.

    Args:
        config: what to train; see :func:`dp_ray.load_config`.
        model: a ``torch.nn.Module``, whose tensors are what training starts from (you declare that
            they are public) and which is left as it is; or what builds one, called with
            ``num_classes``, ``channels``, ``image_size`` and ``model.arguments``.
        data: a pair (training split, test split), a :class:`dp_ray.Source`, or a function of the
            data section that returns one. A split is a map-style data set of (image, label) pairs,
            a pair of arrays or tensors, or a Hugging Face data set; the test split may be None.
            Facts of the data stay those of the configuration: ``data.num_examples`` and the others
            are public.
        objective: a :class:`dp_ray.Objective`, or what makes one, called with ``num_classes`` and
            ``objective.arguments``.
        callbacks: what follows the run; see :class:`dp_ray.Callback`.
        resume: continue a run that was stopped or that crashed, or give it more steps; otherwise
            its name must be free.
        break_lock: with ``resume``, take the run over from a process that is known to be dead.
        accept_charges: with ``resume``, how many noised sums of steps on record may be paid for
            again, because they cannot be repeated bit for bit; by default a few.
        profile: trace the third step into the run's private part.
        replay_key: the ``private/run_key`` of another run, to repeat its draws and noise for tests;
            at most one of the two models may be published.

    Returns:
        The run, finished or stopped.

    Raises:
        ChargesError: more would be charged again than ``accept_charges``; nothing was charged.
        DpRayError: the run cannot start or continue, before anything is charged where possible; or
            a callback failed, after the run has stopped.

    Example:
        >>> config = dp_ray.load_config("digits.yaml", ["privacy.epsilon=1"])
        >>> run = dp_ray.train(config)
        >>> run.epsilon, run.evaluate().accuracy
    """
    if resume and replay_key is not None:
        raise ConfigError(
            "replay_key", str(replay_key), "starts a run", "Leave it out to resume one, or resume"
        )
    objects = Objects(model, data, objective)
    config = objects.put_into(config)
    replay = None if replay_key is None else read_replay_key(Path(replay_key), config.seed)
    result = run_training(
        config,
        resume=resume,
        callbacks=callbacks,
        break_lock=break_lock,
        accept_charges=accept_charges,
        profile=profile,
        replay=replay,
    )
    return Run(result.path, objects)


def run_training(
    config: Config,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    break_lock: bool = False,
    accept_charges: float | None = None,
    profile: bool = False,
    replay: RunKey | None = None,
    probe: Probe | None = None,
) -> Result:
    """Plan, train and return what result.json holds.

    Args:
        config: what to train.
        resume: continue a run that was stopped or crashed; otherwise its name must be free.
        callbacks: what follows the run.
        break_lock: with ``resume``, take the run over from a process that is known to be gone.
        accept_charges: with ``resume``, how many noised sums of steps on record may be paid for
            again; by default one for each hundred steps of the run, or what is paid for at once.
        profile: leave a trace of some steps in the run's private part.
        replay: the key of another run, to repeat its draws and noise; not with ``resume``, which
            continues with the run's own key.
        probe: of an audit.

    Raises:
        ChargesError: more would be charged again than ``accept_charges``; nothing was charged.
        DpRayError: before anything is started where possible; see the message.
    """
    cluster = check_cluster(config)
    config = config.model_copy(update={"cluster": cluster})
    run = RunDirectory.of(config)
    attempt = secrets.token_hex(8)
    places = (run.private, LocalFolder(cache_path(config.data)))
    with errors_for_log(*places), EarlyRay(config.cluster) as early:
        with Dispatcher(callbacks) as dispatcher:
            if resume:
                config, plan = take_up(
                    run, config, attempt, dispatcher.message, break_lock=break_lock
                )
            else:
                plan = begin(run, config, replay, dispatcher.message)
            task = Task(config, plan, run, attempt, profile, probe, accept_charges)
            _warn_of_turns(config, dispatcher.message)
            dispatcher.follow(RunWatch(run, plan, config))
            dispatcher.send("on_start", str(run.root), plan)
            with _stop_on_signal(run, dispatcher):
                _execute(task, early, dispatcher)
            result = Result.read(run.root)
            dispatcher.send("on_end", result)
        dispatcher.check(finished=result.status == "finished")
        return result


def _execute(task: Task, early: EarlyRay, dispatcher: Dispatcher) -> None:
    if task.config.cluster.num_workers == 0:
        train_in_process(task, NullObserver())
        return
    workers = count(task.config.cluster.max_workers, "worker")
    dispatcher.send("on_status", f"starting Ray and {workers}")
    _in_thread(lambda: _train_on_ray(task, early, dispatcher.message))


def _train_on_ray(task: Task, early: EarlyRay, tell: Callable[[str], None]) -> None:
    early.wait()
    prepare_environment(task.config.cluster)
    from dp_ray.on_ray.trainer import train_on_ray  # imports Ray

    train_on_ray(task, tell=tell)


def _warn_of_turns(config: Config, tell: Callable[[str], None]) -> None:
    wanted = config.cluster.max_workers * config.cluster.cpus_per_worker
    if config.cluster.address is None and wanted > usable_cores():
        tell(
            f"cluster.num_workers = {config.cluster.num_workers}: {wanted} CPUs are asked for and "
            f"this machine has {usable_cores()}; the workers will take turns",
        )


def _in_thread(work: Callable[[], None]) -> None:
    """Runs ``work`` in a thread and waits: Ray's own handler of Ctrl-C would abort the run."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # handed to the waiting thread
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    handler = signal.getsignal(signal.SIGTERM)
    while thread.is_alive():
        thread.join(timeout=0.2)  # with a timeout, signals are handled in between
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's core puts its own in place as it starts
    if errors:
        raise errors[0]


@contextmanager
def _stop_on_signal(run: RunDirectory, dispatcher: Dispatcher) -> Iterator[None]:
    """Ctrl-C or SIGTERM: stop after the step at hand, with a checkpoint. Twice: at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        run.request_stop()
        dispatcher.send("on_status", "stopping (again: at once)")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {n: signal.signal(n, request_stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
