"""A step of a whole run, seen from outside: what was summed, what was added, by what was divided.

Two workers run the loop; between sum and update stand charge and noise, once. The noise is
recovered from the parameters, so that nothing here rests on how it was drawn.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.in_turns import train_in_turns
from helpers.support import MakeConfig, charged
from scipy.stats import chi2, kstest
from torch import Tensor

from dp_ray.config.data import DataConfig
from dp_ray.config.run import Config
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import DataError
from dp_ray.keys import KeyedStream
from dp_ray.objectives.objective import LabelSpec
from dp_ray.training import agreement
from dp_ray.training import coordinator as coordinator_module
from dp_ray.training.coordinator import Coordinator
from dp_ray.training.step import STATISTICS, Assignment, ShardSum, ShardWorker

SIGMA, C, BATCH, LR = 2.0, 0.25, 64, 3.0


@dataclass(frozen=True)
class Release:
    """One step as the coordinator saw it.

    Attributes:
        shards: [W, P] sums that the workers computed.
        total: [P] sum that came to the coordinator.
        examples: that were drawn.
        within: of :attr:`~dp_ray.training.step.ShardSum.within`.
        before: [P] parameters, likewise ``after``.
        norms: C before and after.
    """

    shards: Tensor
    total: Tensor
    examples: float
    within: float
    before: Tensor
    after: Tensor
    norms: tuple[float, float]

    def noise(self, *, batch: int = BATCH, deviation: float = SIGMA * C) -> Tensor:
        """[P] what was added to the sum, over σC: standard normal if all is as it should be."""
        return ((self.before - self.after).double() * batch / LR - self.total) / deviation


def watched(config: Config, workers: int, patch: pytest.MonkeyPatch) -> list[Release]:
    """Trains, and notes each step."""
    seen: list[Release] = []
    shards: list[Tensor] = []
    add_up, release = ShardWorker.clipped_sum, Coordinator.release

    def summed(self: ShardWorker, params: Tensor, assignment: Assignment) -> ShardSum:
        found = add_up(self, params, assignment)
        shards.append(found.vector.clone())
        return found

    def released(self: Coordinator, assignment: Assignment, total: ShardSum) -> bool:
        before, norm = self.params.clone(), self.max_grad_norm
        vector = total.vector.clone()
        told = release(self, assignment, total)
        seen.append(
            Release(
                torch.stack(shards[-workers:]),  # before the first step workers compare a sum
                vector,
                float(total.statistics[STATISTICS.index("examples")]),
                total.within,
                before,
                self.params.clone(),
                (norm, self.max_grad_norm),
            )
        )
        shards.clear()
        return told

    patch.setattr(ShardWorker, "clipped_sum", summed)
    patch.setattr(Coordinator, "release", released)
    train_in_turns(config, workers)
    return seen


def plain(make_config: MakeConfig, **sections: Any) -> Config:
    """A run whose updates are lr · (sum + noise) / B̄, and nothing else."""
    privacy = {"noise_multiplier": SIGMA, "max_grad_norm": C, "steps": 6}
    values: dict[str, Any] = {
        "data": {"expected_batch_size": BATCH},
        "model": {"arguments": {"widths": [8, 8]}},
        "optimizer": {"lr": LR, "normalize_update": False},
        "train": {"microbatch_size": 32},
        "privacy": privacy | sections.pop("privacy", {}),
    }
    return make_config(**{**values, **sections})


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_added_is_one_noise_of_deviation_sigma_c(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    seen = watched(plain(make_config), workers, monkeypatch)
    assert len(seen) == 6
    for found in seen:
        assert len(found.shards) == workers
        # Sums, not means, and nobody added anything to them on the way.
        torch.testing.assert_close(found.total, found.shards.sum(dim=0), rtol=0, atol=1e-12)
        assert float(found.total.norm()) <= C * found.examples
    noise = torch.stack([found.noise() for found in seen])
    low, high = chi2.ppf([0.0005, 0.9995], df=noise.numel())
    assert low <= float(noise.square().sum()) <= high
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    between = np.corrcoef(noise.numpy())[np.triu_indices(6, 1)]
    assert np.abs(between).max() < 4 / noise.shape[1] ** 0.5
    # Nor are the numbers of one tensor those of another.
    assert len(torch.unique((noise * 1e6).round())) > 0.95 * noise.numel()


def test_the_denominator_is_public(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it the realised batch, the noise would be out of scale by as much."""
    seen = watched(plain(make_config), 1, monkeypatch)
    drawn = [found.examples for found in seen]
    assert max(abs(count - BATCH) for count in drawn) > 8
    for found in seen:
        noise = found.noise()
        assert abs(float(noise.square().mean()) - 1) < 4 * (2 / len(noise)) ** 0.5


def test_the_sum_does_not_depend_on_who_took_part(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = (
        watched(plain(make_config, name=f"w{workers}"), workers, monkeypatch)[0]
        for workers in (1, 3)
    )
    assert alone.examples == together.examples
    assert len(together.shards) == 3
    torch.testing.assert_close(alone.total, together.total, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.after, together.after, rtol=0, atol=1e-5)


def test_a_step_without_an_example_is_noised_and_charged(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain(make_config, data={"expected_batch_size": 1}, privacy={"steps": 8})
    seen = watched(config, 2, monkeypatch)
    empty = [found for found in seen if found.examples == 0]
    assert 0 < len(empty) < 8
    for found in empty:
        noise = found.noise(batch=1)
        assert abs(float(noise.square().mean()) - 1) < 4 * (2 / len(noise)) ** 0.5
    assert charged(config) == [(step, 0) for step in range(8)]


def test_c_moves_by_a_count_with_noise(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What C tells of the count is within, plus noise of deviation σ_b."""
    rate, quantile, count_noise, steps = 0.01, 0.5, 2.0, 40
    adaptive = {"quantile": quantile, "learning_rate": rate, "count_noise": count_noise}
    # C lies amid the norms, and parameters hardly move: else the share is cut off at 0 or 1.
    privacy = {"adaptive_clipping": adaptive, "steps": steps, "max_grad_norm": 12.0}
    optimizer = {"lr": 1e-6, "normalize_update": False}
    config = plain(make_config, privacy=privacy, optimizer=optimizer)
    noise = []
    for found in watched(config, 1, monkeypatch):
        before, after = found.norms
        share = quantile - math.log(after / before) / rate
        assert 0.05 < share < 0.95
        noise.append(((share - 0.5) * BATCH - found.within) / count_noise)
    low, high = chi2.ppf([0.0005, 0.9995], df=steps)
    assert low <= sum(x * x for x in noise) <= high


def test_noise_follows_c(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step whose C has moved, with as much more noise as the count costs."""
    count_noise = 2.0
    adaptive = {"quantile": 0.9, "learning_rate": 1.0, "count_noise": count_noise}
    seen = watched(plain(make_config, privacy={"adaptive_clipping": adaptive}), 1, monkeypatch)
    assert seen[-1].norms[0] > 2 * C
    sigma = (SIGMA**-2 - (2 * count_noise) ** -2) ** -0.5
    for found in seen:
        noise = found.noise(deviation=sigma * found.norms[0])
        assert abs(float(noise.square().mean()) - 1) < 4 * (2 / len(noise)) ** 0.5


def test_followers_hold_no_key_that_noise_was_drawn_with(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_with = set()
    stream = coordinator_module.KeyedStream

    def noted(key: bytes, **address: int) -> KeyedStream:
        drawn_with.add(key)
        return stream(key, **address)

    monkeypatch.setattr(coordinator_module, "KeyedStream", noted)
    (leader, follower), _ = train_in_turns(plain(make_config), 2)
    secret = leader.task.run.key().secret
    assert follower.lead is None
    assert len(drawn_with) == 1
    held = follower.worker.keys.to_bytes()
    assert held == leader.worker.keys.to_bytes()
    for key in (*drawn_with, secret):
        assert key not in held


def test_releases_alone_are_reported(make_config: MakeConfig) -> None:
    """What an observer hears leaves the run: Ray's logs and dashboard, a scheduler of trials."""
    _, listeners = train_in_turns(plain(make_config), 2)
    told, nothing = (listener.heard for listener in listeners)
    assert told
    assert {frozenset(metrics) for metrics in told} == {
        frozenset({"step", "epsilon", "test_accuracy", "test_loss"})
    }
    assert nothing == [{}] * len(told)


def test_each_invocation_has_a_draw_views_and_masks_of_its_own(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other steps, and of the same step when it is drawn again."""
    [session], _ = train_in_turns(plain(make_config, name="first"), 1)
    seen: dict[str, list[tuple[Any, ...]]] = {"draw": [], "views": [], "dropout": []}
    names = {getattr(session.worker.keys, name): name for name in seen}
    begin = KeyedStream.__init__

    def noted(self: KeyedStream, key: bytes, **address: int) -> None:
        seen[names[key]].append((address["incarnation"], address["step"]))
        begin(self, key, **address)

    monkeypatch.setattr(KeyedStream, "__init__", noted)
    params = torch.zeros(session.worker.layout.size)
    asked = list(itertools.product((0, 1), (4, 5)))
    for incarnation, step in asked:
        session.worker.clipped_sum(params, Assignment(step, incarnation, C, done=False))
    assert seen == {"draw": asked, "views": asked, "dropout": asked}


def test_workers_that_read_other_data_are_refused(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their shards would overlap."""
    opened: list[Dataset] = []

    def other_each_time(config: DataConfig, labels: LabelSpec) -> Dataset:
        opened.append(replace(open_dataset(config, labels), digest=f"{len(opened):064x}"))
        return opened[-1]

    monkeypatch.setattr(agreement, "open_dataset", other_each_time)
    with pytest.raises(DataError, match="1 of 2 workers read other training data"):
        train_in_turns(plain(make_config), 2)
