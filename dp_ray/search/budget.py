"""Equal budget: every trial spends (ε, δ), whatever its σ, T and B̄.

Of σ and T the space (or the file) gives one and the other is solved. T is a whole number, so where
σ is given it is lowered, by less than one step's worth, until T steps spend exactly ε.

TAN's rule (Sander et al. 2022, arXiv 2210.03403): with σ/B̄ and T held, a run at a small batch has
the same total noise in its updates as the large one, and predicts which settings suit it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dp_ray.config.run import Config
from dp_ray.config.search import Domain, SweepConfig
from dp_ray.errors import ConfigError
from dp_ray.privacy.accounting import AccountantName
from dp_ray.privacy.mechanism import mechanism_of
from dp_ray.privacy.plan import PrivacyPlan, adaptive_clipping, solve_budget, with_budget
from dp_ray.privacy.selection import Run
from dp_ray.search.space import Point, budget_points, config_at


@dataclass(frozen=True)
class Budgets:
    """Every budget that a search may use, solved.

    Attributes:
        sweep: the search.
        solved: (B̄, σ as given, T as given) → plan, see :func:`solve_budgets`.
    """

    sweep: SweepConfig
    solved: dict[str, PrivacyPlan]

    def plan_at(self, config: Config) -> PrivacyPlan:
        """The plan of a configuration from :func:`~dp_ray.search.space.config_at`."""
        plan, privacy = self.solved[_key(config)], config.privacy
        found = replace(
            plan,
            views=config.augment.views,
            max_grad_norm=privacy.max_grad_norm,
            clipping=privacy.clipping,
            adaptive_clipping=adaptive_clipping(config),
        )
        mechanism_of(found).check()
        return found

    def trial_at(self, point: Point) -> tuple[Config, PrivacyPlan]:
        """What the trial at a point is trained as, and what it may spend."""
        large, large_plan = self.full_at(point)
        batch = self.sweep.tune.search_batch_size
        if batch is None:
            return large, large_plan
        plan = _held(large_plan, batch)
        data = large.data.model_copy(update={"expected_batch_size": batch})
        return with_budget(large.model_copy(update={"data": data}), plan), plan

    def full_at(self, point: Point) -> tuple[Config, PrivacyPlan]:
        """What a run at a point is trained as when no batch size is held down."""
        config = config_at(self.sweep, point)
        plan = self.plan_at(config)
        return with_budget(config, plan), plan

    @property
    def runs(self) -> list[Run]:
        """What each trial may release."""
        return [plan.releases for plan in self._of_trials]

    @property
    def trial_epsilons(self) -> list[float]:
        """ε of each budget; where a batch size is held down, more than the target."""
        return [plan.epsilon for plan in self._of_trials]

    @property
    def full_runs(self) -> list[Run]:
        """What a run of best.yaml may release, whichever trial is best."""
        return [plan.releases for plan in self.solved.values()]

    @property
    def delta(self) -> float:
        """δ, the same for all."""
        return self._of_trials[0].delta

    @property
    def accountant(self) -> AccountantName:
        """Who counts what trials spend."""
        return self._of_trials[0].accountant

    @cached_property
    def _of_trials(self) -> list[PrivacyPlan]:
        batch = self.sweep.tune.search_batch_size
        return [p if batch is None else _held(p, batch) for p in self.solved.values()]

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        return {key: plan.dump() for key, plan in self.solved.items()}

    @classmethod
    def from_dump(cls, sweep: SweepConfig, values: dict[str, Any]) -> Budgets:
        """The inverse of :meth:`dump`."""
        return cls(sweep, {key: PrivacyPlan.from_dump(plan) for key, plan in values.items()})


def check_budget(sweep: SweepConfig) -> None:
    """Refuses a search whose budget is open, or fixed twice.

    Raises:
        ConfigError: see the message.
    """
    fixed = sweep.training.get("privacy") or {}
    space = sweep.tune.space
    if not isinstance(fixed, dict) or fixed.get("epsilon") is None:
        raise ConfigError(
            "privacy.epsilon",
            None,
            "trials are compared at an equal budget, and none is given",
            "Give the section privacy with epsilon, which each trial spends, and delta",
        )
    if fixed.get("search_epsilon") is not None:
        raise ConfigError(
            "privacy.search_epsilon",
            fixed["search_epsilon"],
            "a search after a search: this one would not count what that one spent",
            "Set it to null, and add both searches when you state what was spent",
        )
    given = {
        field: _domain(space, f"privacy.{field}") or fixed.get(field)
        for field in ("noise_multiplier", "steps")
    }
    if all(value is not None for value in given.values()):
        field = next((f for f in given if f"privacy.{f}" in space), "steps")
        raise ConfigError(
            f"privacy.{field}",
            given[field],
            f"too much is fixed: privacy.epsilon = {fixed['epsilon']}, privacy.noise_multiplier "
            f"({given['noise_multiplier']}) and privacy.steps ({given['steps']}) leave nothing to "
            "solve, and trials would not spend the same",
            "Search or give one of the two, and set the other to null",
        )
    if all(value is None for value in given.values()):
        raise ConfigError(
            "privacy.steps",
            None,
            f"too little is fixed: privacy.epsilon = {fixed['epsilon']} can be spent on few steps "
            "with little noise or on many with much",
            "Give or search privacy.steps or privacy.noise_multiplier",
        )


def _domain(space: dict[str, Domain], field: str) -> dict[str, Any] | None:
    return space[field].model_dump(exclude_none=True) if field in space else None


def solve_budgets(
    sweep: SweepConfig,
    points: list[Point] | None = None,
    *,
    tell: Callable[[str], None] = lambda _text: None,
) -> Budgets:
    """Solves each budget once.

    Args:
        sweep: the search; its space was checked.
        points: the points that will be tried; None solves all that the space allows.
        tell: told how far it is.

    Raises:
        ConfigError: a budget that cannot be met, q > 1, δ ≥ 1/N, a value that cannot be used.
    """
    if points is None:
        space, levels = sweep.tune.space, sweep.tune.budget_levels
        first = {field: domain.at(0.0) for field, domain in space.items()}
        points = [{**first, **point} for point in budget_points(space, levels)]
    configs = {_key(config): config for config in (config_at(sweep, point) for point in points)}
    solved: dict[str, PrivacyPlan] = {}
    for key, config in configs.items():
        tell(f"solving budget {len(solved) + 1} of {len(configs)}")
        _check_hold(sweep, config)
        solved[key] = _spend_exactly(config)
    return Budgets(sweep, solved)


def _spend_exactly(config: Config) -> PrivacyPlan:
    plan = solve_budget(config)
    if config.privacy.steps is not None:
        return plan
    budget = {"noise_multiplier": None, "steps": plan.steps}
    privacy = config.privacy.model_copy(update=budget)
    exact = config.model_copy(update={"privacy": privacy})
    return solve_budget(exact, near=plan.noise_multiplier)


def _check_hold(sweep: SweepConfig, config: Config) -> None:
    if (sweep.tune.hold is None) != (sweep.tune.search_batch_size is None):
        raise ConfigError(
            "tune.search_batch_size",
            sweep.tune.search_batch_size,
            f"it goes together with tune.hold = {sweep.tune.hold!r}",
            "Give both or neither",
        )
    batch, large = sweep.tune.search_batch_size, config.data.expected_batch_size
    if batch is not None and batch >= large:
        raise ConfigError(
            "tune.search_batch_size",
            batch,
            f"trials are to be smaller than data.expected_batch_size = {large}",
            "Lower it",
        )


def _held(plan: PrivacyPlan, batch: int) -> PrivacyPlan:
    """The plan at another batch size, σ/B̄ and T as they are."""
    share, adaptive = batch / plan.expected_batch_size, plan.adaptive_clipping
    if adaptive is not None:
        adaptive = replace(adaptive, count_noise=share * adaptive.count_noise)
    held = replace(
        plan,
        expected_batch_size=batch,
        noise_multiplier=share * plan.noise_multiplier,
        adaptive_clipping=adaptive,
        accountant="rdp",  # where σ is small, PRV takes ten seconds and RDP ten milliseconds
    )
    return held.with_steps(held.steps)


def _key(config: Config) -> str:
    privacy = config.privacy
    return f"{config.data.expected_batch_size} {privacy.noise_multiplier} {privacy.steps}"
