"""A microbatch of blank images, computed here: what it takes, before any data is read.

Views are made of them as in a step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch
from torch import nn

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.data.views import ViewMaker
from dp_ray.gradients.clipped_sum import clipped_gradient_sum
from dp_ray.gradients.layout import trained_parameters
from dp_ray.keys import KEY_BYTES, KeyedStream
from dp_ray.performance.allocator import keep_freed_memory
from dp_ray.performance.memory import (
    does_not_fit,
    peak_bytes,
    process_peak_bytes,
    size_that_fits,
    start_peak,
    start_process_peak,
)
from dp_ray.performance.threads import usable_cores, worker_threads

_CALLS, _ENOUGH_S = 6, 4.0
"""Calls that are timed at most, after one that warms up, and for about how long."""

_BUSY = 0.15
"""Of the cores: more than an idle machine's own services use."""


@dataclass(frozen=True)
class MicrobatchCost:
    """What a microbatch takes on this machine.

    Attributes:
        fastest: seconds of the fastest call.
        slowest: seconds of the slowest one.
        idle: seconds that a call would take if nothing else computed here; ``fastest`` where
            nothing else did.
        cores_in_use: cores that other programs used meanwhile, on average.
        peak_bytes: the most memory that it took: of a GPU, that of its tensors; else that of this
            whole process. None where the system does not tell.
    """

    fastest: float
    slowest: float
    idle: float
    cores_in_use: float
    peak_bytes: float | None

    @property
    def busy(self) -> bool:
        """Whether other programs slowed it down."""
        return self.cores_in_use > _BUSY * usable_cores()


def microbatch_cost(
    config: Config, facts: DataFacts, model: nn.Module, microbatch_size: int
) -> MicrobatchCost:
    """Compute a microbatch of blank images where the model is, with a worker's share of threads.

    Raises:
        ConfigError: a GPU has no memory for it; the message names a size that fits.
    """
    keep_freed_memory()  # as workers do
    try:
        return _microbatch_cost(config, facts, model, microbatch_size)
    except torch.OutOfMemoryError:
        pass  # continued below, where the error no longer holds what was computed
    fitting = size_that_fits(
        microbatch_size, lambda size: _microbatch_cost(config, facts, model, size)
    )
    raise does_not_fit(microbatch_size, fitting, config.augment.views)


def _microbatch_cost(
    config: Config, facts: DataFacts, model: nn.Module, microbatch_size: int
) -> MicrobatchCost:
    params, side = trained_parameters(model), facts.image_size
    device = next(model.parameters()).device
    shape = (microbatch_size, facts.channels, side, side)
    images = torch.zeros(shape, dtype=torch.uint8, device=device)
    views, ids = ViewMaker(config.augment, facts, device), np.arange(microbatch_size)
    labels = torch.zeros(microbatch_size, dtype=torch.int64, device=device)
    seeds = torch.zeros(microbatch_size, dtype=torch.int64, device=device)
    threads = worker_threads(config.cluster, config.cluster.max_workers)
    start_peak(device)
    start_process_peak()

    def compute() -> float:
        started = time.perf_counter()
        numbers = views.numbers(KeyedStream(bytes(KEY_BYTES), incarnation=0, step=0), ids)
        made = views.make(images, views.parameters(numbers.to(device)))
        clipped_gradient_sum(
            model, params, made, labels, max_grad_norm=1.0, dropout_seeds=seeds
        ).norms.cpu()  # a GPU has not ended before
        return time.perf_counter() - started

    with _threads(threads):
        compute()  # warms up
        load = _Load()
        calls: list[float] = []
        while len(calls) < _CALLS and sum(calls) < _ENOUGH_S:
            calls.append(compute())
        others, own = load.so_far()
    measured = peak_bytes(device) if device.type == "cuda" else process_peak_bytes()
    cost = MicrobatchCost(min(calls), max(calls), min(calls), others, measured)
    if not cost.busy or device.type == "cuda":
        return cost
    idle = own / len(calls) / min(threads, usable_cores())
    return replace(cost, idle=min(cost.fastest, idle))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Load:
    """Who computes on this machine: this process and all others."""

    def __init__(self) -> None:
        self._started, self._own, self._all = time.perf_counter(), _own_seconds(), _busy_seconds()

    def so_far(self) -> tuple[float, float]:
        """Return the cores that others used on average, and this process's seconds of CPU."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        own, everybody = _own_seconds() - self._own, _busy_seconds() - self._all
        others = (everybody - own) / elapsed
        return max(others, 0.0), own


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _busy_seconds() -> float:
    """Seconds that all cores together have computed, for whatever machine shares them too."""
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    # Guests' time is part of the user's.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - waiting - guests)
