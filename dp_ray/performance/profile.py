"""Where the time of a step goes: a trace to look at, and a table, for ``dp-ray train --profile``.

Both are private: times and shapes show how many examples were drawn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, record_function

from dp_ray.storage import Folder

PROFILE = "profile"

_WARM_UP = 2
_STEPS = 1

PARTS = ("draw", "views", "gradients", "add up", "reduce", "release", "journal", "broadcast")
"""Of a step, in order. Release is digest, ledger, noise and optimizer; rank 0's alone."""


def part(name: str) -> record_function:
    """Marks a part of a step; costs a microsecond where nobody looks.

    Args:
        name: one of :data:`PARTS`.
    """
    assert name in PARTS
    return record_function(f"dp_ray {name}")


class Clock(Protocol):
    """Told of each step's end."""

    def step(self) -> None:
        """A step has ended."""
        ...


class _NoClock:
    def step(self) -> None:
        """Nobody looks."""


@contextmanager
def profiler(folder: Folder | None, rank: int) -> Iterator[Clock]:
    """Traces the third step of a session.

    Args:
        folder: where rank r leaves profile/rank<r>.json.gz, a trace that Perfetto and
            chrome://tracing open, and profile/rank<r>.txt; None for no profile.
        rank: of this worker.
    """
    if folder is None:
        yield _NoClock()
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def leave(profile: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            trace = Path(scratch) / "trace.json.gz"
            profile.export_chrome_trace(str(trace))
            (folder / PROFILE).write(f"rank{rank}.json.gz", trace.read_bytes())
        (folder / PROFILE).write(f"rank{rank}.txt", _table(profile).encode())

    schedule = torch.profiler.schedule(wait=0, warmup=_WARM_UP, active=_STEPS, repeat=1)
    with torch.profiler.profile(
        activities=activities, schedule=schedule, on_trace_ready=leave, acc_events=True
    ) as profile:
        yield profile


def _table(profile: torch.profiler.profile) -> str:
    """Seconds a step and share of each part; and what its kernels took on a GPU, if there is one.

    A GPU works behind the host, which waits for it in "release", where the sum is copied.
    """
    seconds, on_gpu = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    for event in profile.key_averages():
        name = event.key.removeprefix("dp_ray ")
        if not event.key.startswith("dp_ray ") or name not in seconds:
            continue
        if event.device_type.name == "CPU":  # not the shadow of a part on the GPU's own row
            seconds[name] += event.cpu_time_total / 1e6 / _STEPS
            on_gpu[name] += event.device_time_total / 1e6 / _STEPS
    whole = sum(seconds.values()) or 1.0
    lines = [f"{'part':12s} {'s a step':>10s} {'share':>7s}"]
    lines += [f"{name:12s} {s:10.5f} {100 * s / whole:6.2f}%" for name, s in seconds.items()]
    if any(on_gpu.values()):
        lines += ["", f"{'on the GPU':12s} {'s a step':>10s}"]
        lines += [f"{name:12s} {s:10.5f}" for name, s in on_gpu.items()]
    return "\n".join(lines) + "\n"
