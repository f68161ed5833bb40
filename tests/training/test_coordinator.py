"""The coordinator's noise: drawn while a sum is computed, of the run's own version, and once."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from helpers.interrupted import crash, shake_sums, start_and_stop
from helpers.support import MakeConfig, charged, released, same, start
from numpy.typing import NDArray
from torch import Tensor

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.errors import LedgerError
from dp_ray.keys import VERSIONS, KeyedStream
from dp_ray.privacy.noise import KeyedNoiseOptimizer, NoiseAhead
from dp_ray.training.step import Assignment, ShardSum, ShardWorker

SIX_STEPS = {"privacy": {"steps": 6}, "train": {"checkpoint_every": 3}}


def noise_added(patch: pytest.MonkeyPatch) -> list[NDArray[np.float64]]:
    """Whose numbers meet a sum from now on, in order."""
    added: list[NDArray[np.float64]] = []
    add = KeyedNoiseOptimizer.add_noise

    def noted(self: KeyedNoiseOptimizer) -> None:
        assert self._stream is not None
        added.append(self._stream.normal(sum(p.numel() for p in self.params)))
        add(self)

    patch.setattr(KeyedNoiseOptimizer, "add_noise", noted)
    return added


def test_noise_is_that_of_the_charge_though_it_was_drawn_before(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its step and incarnation: what was drawn for a sum that was refused meets no other."""
    config = make_config(**SIX_STEPS)
    added = noise_added(monkeypatch)
    crash(config, at_step=4)
    shake_sums(monkeypatch)
    start(config, resume=True, accept_charges=2)
    run = RunDirectory.of(config)
    binding = run.read_ledger().sessions[0].binding
    assert binding is not None
    key = run.key().bind(binding).derive("noise")
    addresses = [(step, 0) for step in range(4)] + [(3, 1)]
    assert len(added) == len(addresses)
    for numbers, (step, incarnation) in zip(added, addresses, strict=True):
        stream = KeyedStream(key, incarnation=incarnation, step=step)
        assert np.array_equal(numbers, stream.normal(len(numbers)))


def test_noise_is_drawn_while_the_sum_is_computed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all steps that are taken and no other: none before a stop."""
    config = make_config()
    started: list[tuple[int, int]] = []
    start_drawing = NoiseAhead.start

    def noted(self: NoiseAhead, incarnation: int, step: int, count: int) -> None:
        started.append((incarnation, step))
        start_drawing(self, incarnation, step, count)

    def summed(self: ShardWorker, params: Tensor, assignment: Assignment) -> ShardSum:
        assert started[-1] == (assignment.incarnation, assignment.step)
        return original(self, params, assignment)

    original = ShardWorker.clipped_sum
    monkeypatch.setattr(NoiseAhead, "start", noted)
    monkeypatch.setattr(ShardWorker, "clipped_sum", summed)
    start_and_stop(config, 2)
    start(config, resume=True)
    assert started == [(0, step) for step in range(4)]
    assert not [t for t in threading.enumerate() if t.name.startswith("dp-ray-noise")]


def test_a_run_keeps_the_version_that_it_was_started_with(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was begun by an earlier dp-ray draws, noises and digests as that did."""
    whole = make_config(name="whole", **SIX_STEPS)
    config = make_config(name="crashed", **SIX_STEPS)
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr("dp_ray.ledger.ledger.LATEST", 1)
        earlier.setattr("dp_ray.training.lead.LATEST", 1)
        start(whole)
        crash(config, at_step=4)
    drawn: list[int] = []
    by_numpy = KeyedStream._normal_by_numpy

    def noted(self: KeyedStream, count: int) -> NDArray[np.float64]:
        drawn.append(count)
        return by_numpy(self, count)

    monkeypatch.setattr(KeyedStream, "_normal_by_numpy", noted)
    result = start(config, resume=True, accept_charges=6)
    assert (result["steps"], result["charges"]) == (6, 6)
    assert same(released(whole), released(config))
    assert len(drawn) == 3
    assert [s.version for s in RunDirectory.of(config).read_ledger().sessions] == [1, 1]


def test_a_repeated_key_shares_no_noise_with_another_version(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise of the same words on sums of other draws would cancel out in the difference."""
    added = noise_added(monkeypatch)
    for version in VERSIONS:
        monkeypatch.setattr("dp_ray.ledger.ledger.LATEST", version)
        monkeypatch.setattr("dp_ray.training.lead.LATEST", version)
        start(make_config(name=f"version-{version}", privacy={"steps": 1}))
    assert abs(np.corrcoef(*added)[0, 1]) < 4 / len(added[0]) ** 0.5


def test_a_run_of_an_unknown_version_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    with pytest.MonkeyPatch.context() as later:
        later.setattr("dp_ray.ledger.ledger.LATEST", 3)
        later.setattr("dp_ray.ledger.ledger.VERSIONS", (1, 2, 3))
        start_and_stop(config, 2)
    with pytest.raises(LedgerError, match="are of version 3, and this dp-ray has versions 1 and 2"):
        start(config, resume=True)
    assert len(charged(config)) == 2


def test_noise_that_is_rounded_otherwise_is_drawn_and_charged_again(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another processor, or with another torch: in the last bit it is another noise."""
    config = make_config(**SIX_STEPS)
    crash(config, at_step=4)
    monkeypatch.setattr("dp_ray.training.execution._COUNT", 100)
    assert start(config, resume=True, accept_charges=2)["charges"] == 6
    assert charged(config) == [*((step, 0) for step in range(5)), (3, 1)]
    first, second = (s.execution.machine for s in RunDirectory.of(config).read_ledger().sessions)
    assert first["normals"] != second["normals"]
    assert {**first, "normals": ""} == {**second, "normals": ""}
