"""σ that falls during a run: what it releases, what it costs, and that the run really falls."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from helpers.interrupted import start_and_stop
from helpers.plans import plan_at_rate
from helpers.support import MakeConfig, folder, released, same, start

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.privacy import NoiseScheduleConfig
from dp_ray.errors import ConfigError
from dp_ray.privacy.accounting import epsilon_of, solve_noise_multiplier, solve_steps
from dp_ray.privacy.history import first_of, room
from dp_ray.privacy.mechanism import mechanism_of
from dp_ray.privacy.noise import KeyedNoiseOptimizer
from dp_ray.privacy.plan import solve_budget
from dp_ray.privacy.schedule import NoiseSchedule
from dp_ray.training.preparation import make_plan

HALVES = NoiseSchedule((1.0, 0.5))
FALLING = {"noise_schedule": {"final": 0.5, "parts": 3}, "steps": 7, "noise_multiplier": 2.0}


def test_parts_are_as_equal_as_can_be_and_never_shorter_in_a_longer_run() -> None:
    schedule = NoiseSchedule((1.0, 0.8, 0.6, 0.4))
    before = [0] * 4
    for steps in range(1, 40):
        lengths = schedule.lengths(steps)
        assert sum(lengths) == steps
        assert max(lengths) - min(lengths) <= 1
        assert all(a <= b for a, b in zip(before, lengths, strict=True))
        before = lengths
        factors = [schedule.noise_at(1.0, step, steps) for step in range(steps)]
        listed = [f for f, n in zip(schedule.factors, lengths, strict=True) for _ in range(n)]
        assert factors == listed
    assert HALVES.releases(3.0, 0.1, 5) == ((3.0, 0.1, 2), (1.5, 0.1, 3))
    assert first_of(HALVES.releases(3.0, 0.1, 5), 3) == ((3.0, 0.1, 2), (1.5, 0.1, 1))


@pytest.mark.parametrize("factors", [(), (0.5,), (1.0, 1.1), (1.0, 0.0), (1.0, -0.5)])
def test_factors_that_do_not_fall_are_refused(factors: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fall"):
        NoiseSchedule(factors)


def test_room_is_what_a_matching_of_sums_leaves() -> None:
    """Against all multisets: n more fit if each spent sum has a planned one with no more noise."""

    def fits(planned: list[float], spent: list[float]) -> bool:
        return any(
            all(p <= s for p, s in zip(chosen, spent, strict=True))
            for chosen in itertools.permutations(planned, len(spent))
        )

    planned = [3.0, 2.0, 2.0, 1.0]
    history = ((3.0, 0.1, 1), (2.0, 0.1, 2), (1.0, 0.1, 1))
    for count in range(4):
        for spent in itertools.combinations_with_replacement([4.0, 3.0, 2.0, 1.0, 0.5], count):
            told = tuple((s, 0.1, 1) for s in spent)
            assert (room(history, told, math.inf) >= 0) == fits(planned, list(spent))
            for sigma in (4.0, 2.0, 1.0, 0.5):
                more = room(history, told, sigma) > 0
                assert more == fits(planned, [*spent, sigma])


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld"])
def test_a_falling_run_costs_between_its_least_and_its_most_noise(accountant: str) -> None:
    def cost(*parts: tuple[float, float, int]) -> float:
        return epsilon_of(accountant, parts, 1e-5)  # type: ignore[arg-type]

    falling = cost(*HALVES.releases(2.0, 0.05, 200))
    assert cost((2.0, 0.05, 200)) < cost((2.0, 0.05, 100), (1.0, 0.05, 100)) == falling
    assert falling < cost((1.0, 0.05, 200))


def test_both_solvers_meet_the_budget_of_a_falling_run() -> None:
    plan = plan_at_rate(0.05, noise_factors=HALVES.factors)
    sigma = solve_noise_multiplier("rdp", plan, target=3.0, steps=201)
    spent = epsilon_of("rdp", HALVES.releases(sigma, 0.05, 201), 1e-5)
    assert 3.0 - 2e-3 < spent <= 3.0
    steps = solve_steps("rdp", plan, target=3.0, noise_multiplier=sigma)
    assert steps in (201, 202)


def test_a_run_falls_as_planned_and_is_charged_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(privacy=FALLING)
    plan = make_plan(config)
    assert plan.releases == ((2.0, 64 / 1437, 2), (1.5, 64 / 1437, 2), (1.0, 64 / 1437, 3))
    used = []
    release = KeyedNoiseOptimizer.release

    def noted(self: KeyedNoiseOptimizer, *arguments: object, **keywords: object) -> None:
        used.append(keywords["noise_multiplier"])
        release(self, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(KeyedNoiseOptimizer, "release", noted)
    result = start(config)
    assert used == [2.0, 2.0, 1.5, 1.5, 1.0, 1.0, 1.0]
    assert sorted(RunDirectory.of(config).read_ledger().history) == sorted(plan.releases)
    assert result["epsilon"] == pytest.approx(plan.epsilon)
    assert (
        plan.epsilon > make_plan(make_config(privacy={**FALLING, "noise_schedule": None})).epsilon
    )
    statement = json.loads((folder(config) / "release/privacy.json").read_text())
    assert statement["noise_factors"] == [1.0, 0.75, 0.5]


@pytest.mark.parametrize("charge_every", [1, 4])
def test_a_falling_run_resumes_exactly(make_config: MakeConfig, charge_every: int) -> None:
    train = {"checkpoint_every": 2, "charge_every": charge_every}
    whole = make_config(name="whole", privacy=FALLING, train=train)
    start(whole)
    config = make_config(name="cut", privacy=FALLING, train=train)
    for stop in (3, 5):
        start_and_stop(config, stop, resume=stop > 3)
    result = start(config, resume=True)
    assert (result["steps"], result["charges"]) == (7, 7)
    assert same(released(whole), released(config))
    assert result["epsilon"] == pytest.approx(make_plan(config).epsilon)


def test_a_falling_run_is_given_no_more_steps(make_config: MakeConfig) -> None:
    config = make_config(privacy=FALLING)
    start(config)
    with pytest.raises(ConfigError, match=r"privacy\.noise_schedule was laid out for 7 steps"):
        start(make_config(privacy={**FALLING, "steps": 9}), resume=True)


def test_sigma_is_solved_for_a_falling_run(make_config: MakeConfig) -> None:
    privacy = {"noise_multiplier": None, "epsilon": 2.0, "accountant": "rdp", "steps": 50}
    shape = {"final": 0.25, "parts": 3, "shape": "exponential"}
    config = make_config(privacy={**privacy, "noise_schedule": shape})
    plan = solve_budget(config)
    assert plan.noise_factors == pytest.approx((1.0, 0.5, 0.25))
    assert 1.99 < plan.epsilon <= 2.0
    first, last = (mechanism_of(plan).cost_at(step).noise_multiplier for step in (0, 49))
    assert last == plan.noise_multiplier / 4
    assert last < solve_budget(make_config(privacy=privacy)).noise_multiplier < first


def test_a_part_needs_a_step(make_config: MakeConfig) -> None:
    section = {**FALLING, "steps": 2}
    with pytest.raises(ConfigError, match=r"parts = 3: the run has 2 steps"):
        solve_budget(make_config(privacy=section))


@pytest.mark.parametrize("final", [1e-17, 0.1, 0.3, 0.9999])
@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_a_schedule_ends_where_it_says(final: float, shape: str) -> None:
    section = NoiseScheduleConfig(final=final, shape=shape, parts=7)
    assert NoiseSchedule(section.factors).factors[-1] == final
