"""C that follows a quantile of the norms: what it costs, where it goes, and that it resumes."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from helpers.interrupted import crash, start_and_stop
from helpers.shard_workers import KEY, at, workers
from helpers.support import MakeConfig, charged, folder, released, same, start
from scipy.stats import chi2, norm

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError
from dp_ray.keys import KeyedStream
from dp_ray.privacy.adaptive import COUNT_SENSITIVITY, AdaptiveClipping
from dp_ray.privacy.noise import noised_count
from dp_ray.training import coordinator as coordinator_module
from dp_ray.training.preparation import make_plan
from dp_ray.training.step import Assignment, ShardSum

ADAPTIVE: dict[str, Any] = {
    "adaptive_clipping": {"quantile": 0.5, "learning_rate": 0.5},
    "max_grad_norm": 20.0,
}


def test_sum_and_count_together_are_one_gaussian_mechanism() -> None:
    """The worst neighbour moves both; over their noise it moves them by 1/σ in all."""
    for sigma in (0.5, 1.0, 3.0):
        for count_noise in (1.6, 5.0, 200.0):
            adaptive = AdaptiveClipping(0.5, 0.2, count_noise)
            by_sum = 1.0 / adaptive.sum_noise_multiplier(sigma)
            by_count = COUNT_SENSITIVITY / count_noise
            assert math.hypot(by_sum, by_count) == pytest.approx(1 / sigma, rel=1e-12)
            assert adaptive.sum_noise_multiplier(sigma) > sigma
    assert AdaptiveClipping(0.5, 0.2, 1.0).sum_noise_multiplier(0.0) == 0.0


def test_two_gaussians_are_worth_the_one_that_is_charged() -> None:
    """By simulation: the privacy loss of both releases has the distribution of the one with σ."""
    sigma, count_noise, n = 1.5, 2.0, 400_000
    adaptive = AdaptiveClipping(0.5, 0.2, count_noise)
    generator = np.random.default_rng(0)
    loss = np.zeros(n)
    for shift, std in ((1.0, adaptive.sum_noise_multiplier(sigma)), (0.5, count_noise)):
        seen = generator.normal(shift, std, n)
        loss += norm.logpdf(seen, shift, std) - norm.logpdf(seen, 0.0, std)
    mean = 1 / (2 * sigma**2)
    assert loss.mean() == pytest.approx(mean, abs=4 * math.sqrt(2 * mean / n))
    assert loss.var() == pytest.approx(2 * mean, rel=0.02)


def test_c_stays_a_number_whatever_the_noise() -> None:
    wild = AdaptiveClipping(0.5, 0.2, 1e6)
    assert wild.next_norm(1.0, -1e9, 64) == pytest.approx(math.exp(0.1))
    assert wild.next_norm(1.0, 1e9, 64) == pytest.approx(math.exp(-0.1))
    assert AdaptiveClipping(0.5, 10.0, 1.0).next_norm(1e8, -64, 64) == 1e9
    assert AdaptiveClipping(0.5, 10.0, 1.0).next_norm(1e-8, 64, 64) == 1e-9


def test_a_count_that_costs_more_than_the_step_is_refused(make_config: MakeConfig) -> None:
    adaptive = AdaptiveClipping(0.5, 0.2, 1.0)
    with pytest.raises(ValueError, match="above 1"):
        adaptive.sum_noise_multiplier(2.0)
    section = {**ADAPTIVE, "adaptive_clipping": {"count_noise": 0.5}}
    with pytest.raises(ConfigError, match=r"adaptive_clipping.count_noise = 0.5.*Raise it"):
        make_plan(make_config(privacy=section))


def test_it_goes_with_flat_clipping_alone(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="set it to flat"):
        make_config(privacy={**ADAPTIVE, "clipping": "automatic"})


def test_the_count_has_the_noise_that_was_paid_for() -> None:
    key = KEY.derive("noise of the count")
    n, std = 2000, 3.0
    found = [
        noised_count(10.0, std=std, stream=KeyedStream(key, incarnation=0, step=step)) - 10.0
        for step in range(n)
    ]
    low, high = chi2.ppf([0.0005, 0.9995], df=n)
    assert low <= sum(x * x for x in found) / std**2 <= high


def test_one_example_moves_the_count_by_a_half(make_config: MakeConfig) -> None:
    """Added, removed, within C or beyond; one whose gradient is no number, by nothing."""
    config = make_config(data={"expected_batch_size": 64})
    dataset = open_dataset(config.data)
    [worker] = workers(config, dataset, 1)
    vector = worker.layout.join(dict(worker.model.named_parameters()))
    examples, _, _, norms, _ = worker.clipped_sum(vector, at(0)).statistics
    c = float(norms / examples)  # the mean: some within, some beyond
    whole = worker.clipped_sum(vector, Assignment(0, 0, c, done=False))
    within = whole.within
    assert abs(within) < whole.statistics[0] / 2  # both kinds are there
    drawn = worker.drawn(at(0))

    class Without:
        """The sampler of the neighbour."""

        def __init__(self, example: int) -> None:
            self.example = example

        def draw(self, *_arguments: object) -> np.ndarray[Any, Any]:
            return drawn[drawn != self.example]

    moved = set()
    for example in drawn[:12]:
        changed = type(worker)(**{**vars(worker), "sampler": Without(example)})
        moved.add(within - changed.clipped_sum(vector, Assignment(0, 0, c, done=False)).within)
    assert moved == {-0.5, 0.5}

    broken = vector.clone()
    broken[0] = float("nan")
    assert worker.clipped_sum(broken, Assignment(0, 0, c, done=False)).within == 0.0


def test_c_goes_to_the_quantile(make_config: MakeConfig) -> None:
    """Without noise on the count, in a run whose parameters do not move."""
    config = make_config(
        privacy={
            **ADAPTIVE,
            "adaptive_clipping": {"quantile": 0.3, "learning_rate": 0.3, "count_noise": 0.6},
            "steps": 60,
            "noise_multiplier": 1.0,
        },
        optimizer={"lr": 1e-9},
        train={"evaluate_every": 1},
        augment={"views": 1},
    )
    start(config)
    lines = (folder(config) / "private/metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    bounds = [v["max_grad_norm"] for v in values if "max_grad_norm" in v]
    shares = [1 - v["clipped_fraction"] for v in values if "clipped_fraction" in v]
    assert bounds[0] != bounds[10]
    assert np.mean(shares[40:]) == pytest.approx(0.3, abs=0.05)
    assert max(abs(a / b - 1) for a, b in itertools.pairwise(bounds)) < 0.35


def adaptive(make_config: MakeConfig, name: str, **train: Any) -> Config:
    privacy = {**ADAPTIVE, "steps": 6}
    return make_config(name=name, privacy=privacy, train={"checkpoint_every": 2, **train})


def test_it_costs_what_it_would_cost_without(make_config: MakeConfig) -> None:
    """The same σ in the ledger; what differs is the noise on the sum."""
    config = adaptive(make_config, "moving")
    result = start(config)
    fixed = make_config(name="fixed", privacy={"steps": 6})
    assert result["epsilon"] == pytest.approx(make_plan(fixed).epsilon)
    assert RunDirectory.of(config).read_ledger().history == ((1.0, 64 / 1437, 6),)
    statement = json.loads((folder(config) / "release/privacy.json").read_text())
    assert statement["adaptive_clipping"]["count_noise"] == 64 / 20


@pytest.mark.parametrize("charge_every", [1, 3])
def test_a_stopped_run_goes_on_with_the_norm_that_it_had(
    make_config: MakeConfig, charge_every: int
) -> None:
    whole = adaptive(make_config, "whole", charge_every=charge_every)
    start(whole)
    config = adaptive(make_config, "cut", charge_every=charge_every)
    for stop in (2, 5):
        start_and_stop(config, stop, resume=stop > 2)
    result = start(config, resume=True)
    assert (result["steps"], result["charges"]) == (6, 6)
    assert same(released(whole), released(config))


def test_a_crash_replays_the_same_norms(make_config: MakeConfig) -> None:
    whole = adaptive(make_config, "whole")
    start(whole)
    config = adaptive(make_config, "crashed")
    crash(config, at_step=3)
    result = start(config, resume=True)
    assert (result["steps"], result["charges"]) == (6, 6)
    assert charged(config) == [(step, 0) for step in range(6)]
    assert same(released(whole), released(config))


def test_another_count_is_another_release(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal noise on two counts would cancel out: the digest is of the count too."""
    config = adaptive(make_config, "crashed")
    crash(config, at_step=3)
    monkeypatch.setattr(ShardSum, "within", property(lambda self: float(self.statistics[4]) + 0.5))
    result = start(config, resume=True, accept_charges=2)
    assert (2, 1) in charged(config)  # not the same sum: drawn again, and charged again
    assert result["charges"] == 6
    assert result["steps"] < 6


def test_noise_of_count_and_sum_are_of_different_keys(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[bytes, int, int]] = []
    stream = coordinator_module.KeyedStream

    def noted(key: bytes, **address: int) -> KeyedStream:
        drawn.append((key, address["incarnation"], address["step"]))
        return stream(key, **address)

    monkeypatch.setattr(coordinator_module, "KeyedStream", noted)
    start(adaptive(make_config, "run"))
    assert len(drawn) == len(set(drawn)) == 12
    assert len({key for key, _, _ in drawn}) == 2
