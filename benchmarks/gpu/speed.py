"""Stage b: the private step beside the non-private one. Processes compile at once, time in turn."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs import Job, jobs
from results import Results, arguments, in_short, write

BASELINE = "non-private compiled"

ROUNDS, ENOUGH_S = 15, 4.0
"""Time up to 15 calls, stopping after about 4 s, and at least three."""

AT_ONCE = {"cuda": 4, "cpu": 1}
"""Processes."""


@dataclass
class Running:
    """A job at work."""

    index: int
    job: Job
    process: subprocess.Popen[bytes]
    until: float


def main() -> None:
    """Starts jobs as others end, until time is up; or is one of them."""
    parser = arguments(str(__doc__))
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.work / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    todo = jobs(options.device, smoke=options.smoke)
    if options.job is not None:
        measure(todo[options.job], folder / f"{options.job}.jsonl", folder)
        return
    Board(options, folder, todo).play()


class Board:
    """Which jobs wait, run and are done, and what came of them."""

    def __init__(self, options: argparse.Namespace, folder: Path, todo: list[Job]) -> None:
        self._folder, self._out = folder, options.out
        self._results = Results(options.out, "speed")
        self._until = options.until
        self._waiting = list(enumerate(todo))
        self._at_once = AT_ONCE[options.device]
        self._running: list[Running] = []
        self._read: dict[int, int] = {}

    def play(self) -> None:
        """Until all is measured or time is up."""
        try:
            while (self._waiting or self._running) and time.monotonic() < self._until:
                while self._waiting and len(self._running) < self._at_once:
                    self._start(*self._waiting.pop(0))
                time.sleep(0.5)
                for running in list(self._running):
                    self._collect(running)
                    late = time.monotonic() > running.until
                    if running.process.poll() is not None or late:
                        self._end(running, "time limit" if late else "")
        finally:
            for running in list(self._running):
                self._end(running, "no more time")
        for _, job in self._waiting:
            self._add(job, [{"step": " / ".join(job.steps), "problem": "no time"}])

    def _start(self, index: int, job: Job) -> None:
        command = [sys.executable, *sys.argv, "--job", str(index)]
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}
        with (self._folder / f"{index}.log").open("wb") as log:
            process = subprocess.Popen(
                command, start_new_session=True, env=environment, stdout=log, stderr=log
            )
        self._running.append(Running(index, job, process, time.monotonic() + job.limit_s))

    def _end(self, running: Running, problem: str) -> None:
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        code = running.process.wait()
        self._running.remove(running)
        self._collect(running)
        missing = running.job.steps[self._read.get(running.index, 0) :]
        if missing:
            log = (self._folder / f"{running.index}.log").read_text(errors="replace")
            problem = problem or f"status {code}: {log[-300:]}"
            self._add(running.job, [{"step": missing[0], "problem": problem}])

    def _collect(self, running: Running) -> None:
        """Takes over what a job has written since."""
        try:
            lines = (self._folder / f"{running.index}.jsonl").read_text().splitlines()
        except OSError:
            return
        known = self._read.get(running.index, 0)
        self._read[running.index] = len(lines)
        if lines[known:]:
            self._add(running.job, [json.loads(line) for line in lines[known:]])

    def _add(self, job: Job, found: list[dict[str, Any]]) -> None:
        case = job.case
        for row in found:
            self._results.add(
                network=case.network,
                K=case.views,
                B=case.examples,
                precision=job.precision,
                variant=job.variant,
                **row,
            )
        self._compare()
        self._results.write()
        texts = [file.read_text() for file in sorted(self._folder.glob("profile-*.txt"))]
        if texts:
            write(self._out / "profile.txt", "\n\n".join(texts))

    def _compare(self) -> None:
        """Sets each row's ratio of time an image to the compiled non-private step."""
        rows = self._results.rows
        limits = {
            (row["network"], row["precision"]): row["images_per_s"]
            for row in rows
            if row["step"] == BASELINE and row.get("images_per_s")
        }
        for row in rows:
            limit = limits.get((row["network"], row["precision"]))
            if limit and row.get("images_per_s"):
                row["ratio"] = round(limit / row["images_per_s"], 3)


def measure(job: Job, file: Path, folder: Path) -> None:
    """Measures the steps of a job, and appends a line for each to a file."""
    import torch

    from dp_ray.performance.device import prepare_device

    device = torch.device(job.case.device)
    prepare_device(device)
    if job.variant == "no cudnn.benchmark":
        torch.backends.cudnn.benchmark = False
    if job.variant == "math attention":
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    if job.variant == "no CUDA graph":
        from dp_ray.gradients.engines import compiled

        compiled.CUDA_GRAPHS = ()
    for step in job.steps:
        try:
            row = measure_step(job, step, folder, device)
        except Exception as error:
            row = {"problem": in_short(error)}
        with file.open("a") as lines:
            lines.write(json.dumps({"step": step, **row}) + "\n")
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure_step(job: Job, step: str, folder: Path, device: Any) -> dict[str, Any]:
    """Median time, images a second, peak memory and what building took."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    began = time.perf_counter()
    call = build(job, step)
    call()
    wait()
    built = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with alone(folder):
        call()
        wait()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds: list[float] = []
        started = time.perf_counter()
        while len(seconds) < 3 or (
            len(seconds) < ROUNDS and time.perf_counter() - started < ENOUGH_S
        ):
            before = time.perf_counter()
            call()
            wait()
            seconds.append(time.perf_counter() - before)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
        if job.profile:
            name = f"profile-{job.case.network.replace('/', '')}-{job.precision}-{step}.txt"
            write(folder / name.replace(" ", "_"), profile(job, step, call, wait))
    median = statistics.median(seconds)
    images = job.case.examples * job.case.views
    return {
        "ms": median * 1e3,
        "images_per_s": images / median,
        "peak_gib": peak,
        "build_s": built,
        "spread": (max(seconds) - min(seconds)) / median,
    }


def build(job: Job, step: str) -> Any:
    """The call to time."""
    from contenders import non_private, ours

    precision: Any = job.precision
    if step.startswith("non-private"):
        return non_private(job.case, compiled=step.endswith("compiled"), precision=precision)
    layout = "channels_last" if job.variant == "channels_last" else "contiguous"
    return ours(job.case, step, precision, layout)  # type: ignore[arg-type]


def profile(job: Job, step: str, call: Any, wait: Any) -> str:
    """The kernels of one call, as a table."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    activities = [ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if job.case.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        key = "self_device_time_total"
    with profiled(activities=activities) as found:
        call()
        wait()
    text = found.key_averages().table(
        sort_by=key, row_limit=30, max_name_column_width=90, max_src_column_width=10
    )
    return f"{json.dumps(asdict(job.case))} {job.precision} {step}\n{text}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process is timed meanwhile."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
