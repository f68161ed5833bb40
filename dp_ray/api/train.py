"""One run from its configuration to its results: what ``dp-ray train`` does."""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import STOP, RunDirectory
from dp_ray.config.run import Config
from dp_ray.data.cache import cache_path
from dp_ray.keys import RunKey
from dp_ray.on_ray.early import EarlyRay
from dp_ray.on_ray.environment import check_environment, located, prepare_environment
from dp_ray.on_ray.job import check_storage_path, errors_for_log
from dp_ray.performance.threads import usable_cores
from dp_ray.reporting.live import say
from dp_ray.reporting.run_progress import ProgressLine
from dp_ray.reporting.words import count
from dp_ray.storage import LocalFolder
from dp_ray.training.local import NullObserver, train_in_process
from dp_ray.training.opening import begin, take_up
from dp_ray.training.probe import Probe
from dp_ray.training.task import Task


def run_training(
    config: Config,
    *,
    resume: bool,
    console: Console,
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
        console: where progress is shown, if it is a terminal.
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
    check_storage_path(config.train.storage_path)
    cluster = located(config.cluster)
    if cluster.num_workers != 0:
        check_environment(cluster)
    config = config.model_copy(update={"cluster": cluster})
    run = RunDirectory.of(config)
    attempt = secrets.token_hex(8)

    def tell(text: str) -> None:
        say(console, text)

    places = (run.private, LocalFolder(cache_path(config.data)))
    with errors_for_log(*places), EarlyRay(config.cluster) as early:
        if resume:
            config, plan = take_up(run, config, attempt, tell, break_lock=break_lock)
        else:
            plan = begin(run, config, replay, tell)
        task = Task(config, plan, run, attempt, profile, probe, accept_charges)
        _warn_of_turns(config, tell)
        with ProgressLine(run, plan, console) as line, _stop_on_signal(run, line):
            if config.cluster.num_workers == 0:
                train_in_process(task, NullObserver())
            else:
                line.note(f"starting Ray and {count(config.cluster.max_workers, 'worker')}")
                _in_thread(lambda: _train_on_ray(task, early, tell))
            line.tell_notes()  # what was left since the last look
        return Result.read(run.root)


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
def _stop_on_signal(run: RunDirectory, line: ProgressLine) -> Iterator[None]:
    """Ctrl-C or SIGTERM: stop after the step at hand, with a checkpoint. Twice: at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        run.private.write(STOP, b"")
        line.note("stopping (again: at once)")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {n: signal.signal(n, request_stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
