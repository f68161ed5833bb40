"""Runs that are stopped, and runs whose process dies at a certain place."""

from __future__ import annotations

from typing import Any

import pytest

from dp_ray.artifacts.journal import Journal
from dp_ray.config.run import Config
from dp_ray.privacy.noise import NoiseSource, NoiseStreams, StepNoises
from helpers.support import start


def start_and_stop(config: Config, before_step: int, *, resume: bool = False) -> dict[str, Any]:
    """Has a run stop as by Ctrl-C, before the given step."""

    def requested(journal: Journal) -> bool:
        return journal._step >= before_step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "stop_requested", requested)
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
