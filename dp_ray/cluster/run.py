"""One run from its configuration to its results: what ``dp-ray train`` does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console

from dp_ray.cluster.environment import cluster_address, prepare_environment
from dp_ray.cluster.progress import ProgressLine
from dp_ray.config import Config
from dp_ray.data.store import open_dataset
from dp_ray.report.words import count
from dp_ray.training.plan import make_plan
from dp_ray.training.run_directory import RunDirectory
from dp_ray.training.session import Task
from dp_ray.training.threads import usable_cores


def run_training(config: Config, *, resume: bool, console: Console) -> dict[str, Any]:
    """Plans, trains and returns what result.json holds.

    Args:
        config: what to train.
        resume: go on with a run that was stopped or that crashed; otherwise its name must be free.
        console: where progress is shown, if it is a terminal.

    Raises:
        DpRayError: before anything is started where possible; see the message.
    """
    address = cluster_address(config.cluster)
    cluster = config.cluster.model_copy(update={"address": address})
    config = config.model_copy(update={"cluster": cluster})
    run = RunDirectory.of(config)
    run.check_resume(config) if resume else run.check_free()
    plan = make_plan(config)
    if resume:
        plan = run.plan()  # solved again it might differ in the last digits
    if address is None:
        open_dataset(config.data)  # a mistake in the data shows before Ray is started
    if not resume:
        run.create(config, plan)
    # The seed leads to the noise: it stays in the run's private part, for the coordinator alone.
    task = Task(config.model_copy(update={"seed": None}), plan, run)
    run.stop_request.unlink(missing_ok=True)
    run.progress.unlink(missing_ok=True)
    _warn_of_turns(config, console)
    with ProgressLine(run, plan, console) as line, _stop_on_signal(run, line):
        if config.cluster.num_workers == 0:
            from dp_ray.cluster.local import train_in_process

            train_in_process(task)
        else:
            prepare_environment(config.cluster)
            from dp_ray.cluster.trainer import train_on_ray  # imports Ray

            line.note(f"starting Ray and {count(config.cluster.num_workers, 'worker')}")
            _in_thread(lambda: train_on_ray(task))
    return run.read_result()


def _warn_of_turns(config: Config, console: Console) -> None:
    wanted = config.cluster.num_workers * config.cluster.cpus_per_worker
    if config.cluster.address is None and wanted > usable_cores():
        console.print(
            f"cluster.num_workers = {config.cluster.num_workers}: {wanted} CPUs are asked for and "
            f"this machine has {usable_cores()}; the workers will take turns",
            markup=False,
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
        run.write_private(run.stop_request.name, "")
        line.note("stopping (again: at once)")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {n: signal.signal(n, request_stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
