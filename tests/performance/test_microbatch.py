"""A plan's time is a range, and says when other programs compute on the machine."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from helpers.support import MakeConfig

import dp_ray
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.models.build import build_model
from dp_ray.performance import microbatch
from dp_ray.performance.microbatch import MicrobatchCost, microbatch_cost
from dp_ray.performance.threads import usable_cores
from dp_ray.reporting.plan import describe_plan, plan_facts


def cost_of(config: Config) -> MicrobatchCost:
    facts = data_facts(config.data)
    return microbatch_cost(config, facts, build_model(config.model, facts), 8)


def others_use(cores: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process get half a core, beside others."""
    monkeypatch.setattr(microbatch, "_own_seconds", lambda: 0.5 * time.perf_counter())
    monkeypatch.setattr(microbatch, "_busy_seconds", lambda: (0.5 + cores) * time.perf_counter())


def test_on_an_idle_machine_the_range_is_that_of_the_calls(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    others_use(0.0, monkeypatch)
    cost = cost_of(make_config())
    assert not cost.busy
    assert cost.cores_in_use == pytest.approx(0.0, abs=0.01)
    assert 0 < cost.idle == cost.fastest <= cost.slowest
    assert "busy" not in describe_plan(plan_facts(make_config()))


def test_on_a_busy_machine_the_lower_figure_is_that_of_an_idle_one(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    others_use(1.5, monkeypatch)
    config = make_config(cluster={"threads_per_worker": 1})
    cost = cost_of(config)
    assert cost.busy
    assert cost.cores_in_use == pytest.approx(1.5, abs=0.05)
    # Half a core is half the speed of one thread.
    assert 0.4 * cost.fastest < cost.idle < 0.7 * cost.slowest
    facts = plan_facts(config)
    fewest, most = facts["seconds"]
    assert most > 1.5 * fewest
    text = describe_plan(facts)
    assert f"busy: other programs use about 1.5 of its {usable_cores()} cores" in text
    assert dp_ray.plan(config).seconds is not None


def test_threads_are_set_back_and_calls_are_few(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, clock, calls = torch.get_num_threads(), itertools.count(), []
    monkeypatch.setattr(microbatch.time, "perf_counter", lambda: 5.0 * next(clock))
    summed = microbatch.clipped_gradient_sum

    def counted(*arguments: object, **keywords: object) -> object:
        calls.append(torch.get_num_threads())
        return summed(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(microbatch, "clipped_gradient_sum", counted)
    cost_of(make_config(cluster={"threads_per_worker": 3}))
    assert calls == [3, 3]  # one warms up; the next took longer than all may
    assert torch.get_num_threads() == before
