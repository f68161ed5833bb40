"""Runs that are stopped, runs whose process dies at a certain place, and sums that then differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from dp_ray.artifacts.journal import Journal
from dp_ray.config.run import Config
from dp_ray.privacy.noise import NoiseSource, NoiseStreams, StepNoises
from dp_ray.training.step import Assignment, ShardSum, ShardWorker
from helpers.support import start


@contextmanager
def stop_before(step: int) -> Iterator[None]:
    """Has the runs inside stop as by Ctrl-C, before the given step."""

    def requested(journal: Journal) -> bool:
        return journal._step >= step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "stop_requested", requested)
        yield


def start_and_stop(config: Config, before_step: int, *, resume: bool = False) -> dict[str, Any]:
    """Has a run stop as by Ctrl-C, before the given step."""
    with stop_before(before_step):
        return start(config, resume=resume)


class PowerCut(BaseException):
    """The process dies here."""


def power_cut(*_arguments: Any, **_keywords: Any) -> Any:
    """In the place of a function that is never reached."""
    raise PowerCut


def crash(config: Config, at_step: int) -> None:
    """Starts a run that dies after the charge of a step and before its noise."""
    noise_of = StepNoises.of

    def cut(self: StepNoises, step: int, streams: NoiseStreams) -> NoiseSource:
        if step == at_step:
            raise PowerCut
        return noise_of(self, step, streams)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepNoises, "of", cut)
        with pytest.raises(PowerCut):
            start(config)


def shake_sums(patch: pytest.MonkeyPatch) -> None:
    """Has workers compute other clipped sums than before, as nondeterministic kernels may."""
    clipped_sum = ShardWorker.clipped_sum

    def shaken(self: ShardWorker, params: Tensor, assignment: Assignment) -> ShardSum:
        found = clipped_sum(self, params, assignment)
        found.vector[0] += 1e-6
        return found

    patch.setattr(ShardWorker, "clipped_sum", shaken)
