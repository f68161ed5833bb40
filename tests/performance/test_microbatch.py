"""A plan's time is a range, and says when other programs compute on the machine."""

from __future__ import annotations

import itertools

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
    """Has a microbatch take a second, in which this process gets half a core beside others."""
    now = 0.0
    summed = microbatch.clipped_gradient_sum

    def slowly(*arguments: object, **keywords: object) -> object:
        nonlocal now
        now += 1.0
        return summed(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(microbatch, "clipped_gradient_sum", slowly)
    monkeypatch.setattr(microbatch.time, "perf_counter", lambda: now)
    monkeypatch.setattr(microbatch, "_own_seconds", lambda: 0.5 * now)
    monkeypatch.setattr(microbatch, "_busy_seconds", lambda: (0.5 + cores) * now)


def test_on_an_idle_machine_the_range_is_that_of_the_calls(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        others_use(0.0, patch)
        cost = cost_of(make_config())
        text = describe_plan(plan_facts(make_config()))
    assert not cost.busy
    assert cost.cores_in_use == pytest.approx(0.0)
    assert cost.idle == cost.fastest == cost.slowest == 1.0
    assert "busy" not in text


def test_on_a_busy_machine_the_lower_figure_is_that_of_an_idle_one(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(cluster={"threads_per_worker": 1})
    with monkeypatch.context() as patch:
        others_use(1.5, patch)
        cost, facts = cost_of(config), plan_facts(config)
        seconds = dp_ray.plan(config).seconds
    assert cost.busy
    assert cost.cores_in_use == pytest.approx(1.5)
    # Half a core is half the speed of one thread.
    assert (cost.idle, cost.fastest, cost.slowest) == (0.5, 1.0, 1.0)
    fewest, most = facts["seconds"]
    assert most / fewest == pytest.approx(2 * 1.5)  # and the rest of a step
    text = describe_plan(facts)
    assert f"busy: other programs use about 1.5 of its {usable_cores()} cores" in text
    assert seconds == (fewest, most)


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
