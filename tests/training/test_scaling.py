"""The model of a step's time with W workers, and what ``dp-ray plan --workers`` says of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.support import MakeConfig
from typer.testing import CliRunner, Result

from dp_ray import cli
from dp_ray.reporting.scaling import describe_scaling
from dp_ray.training.scaling import (
    Network,
    Work,
    broadcast_traffic,
    expected_microbatches,
    reduce_traffic,
    release_seconds_per_parameter,
    step_time,
)

LAN = Network(latency_s=50e-6, seconds_per_byte=8e-10)
WORK = Work(
    num_examples=50_000,
    expected_batch_size=4096,
    microbatch_size=16,
    microbatch_seconds=0.5,
    parameters=10**6,
    release_seconds_per_parameter=4e-8,
)


@pytest.mark.parametrize(
    ("num_examples", "expected", "size", "workers"),
    [(1000, 64, 8, 4), (1437, 512, 32, 3), (100, 99, 7, 5), (10, 2, 1, 16), (5000, 40, 32, 64)],
)
def test_expected_microbatches_are_those_of_simulated_draws(
    num_examples: int, expected: int, size: int, workers: int
) -> None:
    shards = [
        (rank + 1) * num_examples // workers - rank * num_examples // workers
        for rank in range(workers)
    ]
    generator = np.random.default_rng(0)
    drawn = generator.binomial(shards, expected / num_examples, size=(40_000, workers))
    microbatches = np.ceil(drawn / size)
    simulated = microbatches.mean(axis=1), microbatches.max(axis=1)
    found = expected_microbatches(num_examples, expected, size, workers)
    for expectation, values in zip(found, simulated, strict=True):
        error = values.std() / math.sqrt(len(values))  # of the simulation's mean
        assert expectation == pytest.approx(values.mean(), abs=5 * error + 1e-3)


def test_expected_microbatches_where_they_can_be_counted() -> None:
    # Two workers with an example each, which joins with probability 1/2.
    assert expected_microbatches(2, 1, 1, 2) == pytest.approx((0.5, 0.75))
    # One worker, three examples, microbatches of two: P(n = 0, 1, 2, 3) = 8, 12, 6, 1 of 27.
    assert expected_microbatches(3, 1, 2, 1) == pytest.approx((20 / 27, 20 / 27))
    # All examples join: nothing is random, and shards of 3 and 4 take one microbatch of 4.
    assert expected_microbatches(10, 10, 4, 3) == pytest.approx((1.0, 1.0))
    # More workers than examples: ten shards hold one.
    assert expected_microbatches(10, 10, 1, 40) == pytest.approx((0.25, 1.0))


def test_expected_microbatches_of_huge_draws_are_the_batch_and_its_spread() -> None:
    mean, largest = expected_microbatches(10**9, 10**6, 1, 1)
    assert mean == largest == pytest.approx(1e6, rel=1e-9)
    mean, largest = expected_microbatches(10**9, 10**6, 1, 1024)
    assert mean == pytest.approx(10**6 / 1024, rel=1e-9)
    # The largest of 1024 normal numbers is 3.2 standard deviations above their mean.
    assert (largest - mean) / math.sqrt(mean) == pytest.approx(3.25, abs=0.1)


def test_more_workers_take_fewer_microbatches_each_and_are_less_even() -> None:
    pairs = [expected_microbatches(50_000, 4096, 16, 2**i) for i in range(11)]
    assert all(mean <= largest for mean, largest in pairs)
    assert sorted(pairs, reverse=True) == pairs
    overhang = [largest / mean for mean, largest in pairs[:9]]
    assert sorted(overhang) == overhang


def test_one_worker_sends_nothing_and_waits_for_nobody() -> None:
    for network in (LAN, Network(1.0, 1.0, cores=2)):
        step = step_time(WORK, 1, network)
        assert step.network == 0
        assert step.imbalance == pytest.approx(0, abs=1e-9)
        assert step.compute == pytest.approx(0.5 * 4096 / 16)
        assert step.release == pytest.approx(0.04)
        parts = step.compute + step.padding + step.release
        assert step.total == pytest.approx(parts)


def test_reduce_sends_what_gloo_was_seen_to_send() -> None:
    """Bytes on the loopback, in vectors: read from /proc/net/dev, framing (below 1%) included."""
    measured = {
        (2, 800_000): 1.506,
        (2, 8_000_000): 2.012,
        (2, 80_000_000): 2.475,
        (4, 800_000): 3.771,
        (4, 8_000_000): 3.755,
        (4, 80_000_000): 4.672,
    }
    for (workers, size), vectors in measured.items():
        assert reduce_traffic(workers, size).total_bytes / size == pytest.approx(vectors, rel=0.04)


def test_limits_of_the_traffic() -> None:
    assert reduce_traffic(1, 100).link_bytes == broadcast_traffic(1, 100).link_bytes == 0
    assert [broadcast_traffic(w, 1).hops for w in (2, 3, 4, 5, 1024)] == [1, 2, 2, 3, 10]
    assert [broadcast_traffic(w, 1).link_bytes for w in (2, 4, 1024)] == [1, 3, 55]
    assert broadcast_traffic(1024, 1).total_bytes == 1023
    # A ring's time does not grow with W, but for the messages that wait for one another.
    assert reduce_traffic(1024, 10**9).link_bytes < 2 * 10**9
    assert reduce_traffic(1024, 10**9).hops == 1024
    assert reduce_traffic(1024, 32).link_bytes <= 64


def test_a_faster_network_and_a_smaller_network_take_less_time() -> None:
    times = [step_time(WORK, 64, Network(50e-6, 8e-9 / gbit)).total for gbit in (1, 10, 100)]
    assert sorted(times, reverse=True) == times
    free = step_time(WORK, 64, Network(0.0, 0.0))
    assert free.network == 0
    assert free.total < times[-1]


def test_workers_of_one_machine_share_its_cores() -> None:
    free = Network(0.0, 0.0, cores=2)
    two, eight = step_time(WORK, 2, free), step_time(WORK, 8, free)
    assert eight.compute == pytest.approx(two.compute)
    # They take turns, so nobody waits for the one that drew most, but more of it is padding.
    assert eight.imbalance == 0
    assert eight.padding > two.padding
    # A transfer takes two cores, so eight workers have one at a time, and on 32 cores eight.
    traffic = reduce_traffic(8, 800)
    assert Network(0.0, 1.0, cores=2).seconds(traffic) == traffic.total_bytes
    assert Network(0.0, 1.0, cores=32).seconds(traffic) == traffic.total_bytes / 8


def test_release_is_measured() -> None:
    assert 0 < release_seconds_per_parameter(1000) < 1


@pytest.fixture
def config_file(make_config: MakeConfig, tmp_path: Path) -> Path:
    values = make_config(train={"microbatch_size": 8}).dump()
    del values["name"]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def plan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])


def test_plan_prints_the_table_and_gives_its_numbers(config_file: Path) -> None:
    result = plan(config_file, "--workers", "64,1", "--workers", "8", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    scaling = found["scaling"]
    assert [row["workers"] for row in scaling["table"]] == [1, 8, 64]
    assert (scaling["latency_us"], scaling["bandwidth_gbit"]) == (50, 10)
    assert scaling["microbatch_size"] == 8
    for row in scaling["table"]:
        names = ("compute", "padding", "imbalance", "network", "release")
        assert row["step_seconds"] == pytest.approx(sum(row[f"{n}_seconds"] for n in names))
        assert row["run_seconds"] == pytest.approx(4 * row["step_seconds"])
        assert row["efficiency"] == pytest.approx(row["speed_up"] / row["workers"])
    assert scaling["table"][0]["speed_up"] == 1
    assert scaling["table"][0]["network_seconds"] == 0
    assert describe_scaling(scaling) in result.output
    assert "--latency-us" in result.output


def test_a_network_may_be_given(config_file: Path) -> None:
    given = ("--latency-us", "1000", "--bandwidth-gbit", "0.1")
    result = plan(config_file, "--workers", "16", *given, "--json")
    (row,) = json.loads(result.output.splitlines()[-1])["scaling"]["table"]
    assert row["network_seconds"] > 40e-3  # forty messages wait for one another


def test_plan_says_nothing_of_workers_unasked(config_file: Path) -> None:
    result = plan(config_file, "--json")
    assert "scaling" not in json.loads(result.output.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--workers", "0"),
        ("--workers", "2,-1"),
        ("--workers", "two"),
        ("--workers", "1.5"),
        ("--workers", ""),
        ("--workers", "1,,2"),
        ("--workers", "1", "--bandwidth-gbit", "0"),
        ("--workers", "1", "--bandwidth-gbit", "inf"),
        ("--workers", "1", "--latency-us", "-1"),
        ("--workers", "1", "--latency-us", "nan"),
    ],
)
def test_plan_refuses_what_makes_no_sense(config_file: Path, arguments: tuple[str, ...]) -> None:
    result = plan(config_file, *arguments)
    assert result.exit_code == 2
    assert arguments[-2] in result.output
