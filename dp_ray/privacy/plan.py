"""From a configuration to a plan: σ, q, T and ε solved and checked; reads no data.

What changes privacy is a :class:`PrivacyPlan`; what only changes speed and memory is not in it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.errors import ConfigError
from dp_ray.gradients.clipping import Clipping
from dp_ray.privacy.accounting import (
    AccountantName,
    BudgetError,
    epsilon_of,
    solve_noise_multiplier,
    solve_steps,
)
from dp_ray.privacy.adaptive import AdaptiveClipping
from dp_ray.privacy.history import History, first_of
from dp_ray.privacy.schedule import NoiseSchedule


@dataclass(frozen=True)
class PrivacyPlan:
    """Everything that a privacy statement depends on; all of it public.

    Attributes:
        num_examples: N.
        expected_batch_size: B̄, the denominator of every update.
        views: K; needs no budget, recorded because results depend on it.
        noise_multiplier: σ; of the first step, if it falls.
        max_grad_norm: C; of the first step, if it adapts.
        steps: T, the most noised sums that may be released.
        delta: δ.
        accountant: which accountant states ε.
        epsilon: ε of T steps: the budget that is never passed.
        clipping: how gradients are brought within C.
        adaptive_clipping: how C follows the gradients' norms, if it does.
        noise_factors: σ of each equal part of the run over the first σ.
    """

    num_examples: int
    expected_batch_size: int
    views: int
    noise_multiplier: float
    max_grad_norm: float
    steps: int
    delta: float
    accountant: AccountantName
    epsilon: float
    clipping: Clipping = "flat"
    adaptive_clipping: AdaptiveClipping | None = None
    noise_factors: tuple[float, ...] = (1.0,)

    @property
    def sample_rate(self) -> float:
        """q = B̄/N."""
        return self.expected_batch_size / self.num_examples

    @property
    def schedule(self) -> NoiseSchedule:
        """How σ falls."""
        return NoiseSchedule(self.noise_factors)

    @property
    def releases(self) -> History:
        """What T steps release, all that an accountant needs."""
        return self.schedule.releases(self.noise_multiplier, self.sample_rate, self.steps)

    def noise_at(self, step: int) -> float:
        """σ of a step."""
        return self.schedule.noise_at(self.noise_multiplier, step, self.steps)

    def epsilon_after(self, steps: int) -> float:
        """ε of the first ``steps`` steps, as the accountant has it."""
        return epsilon_of(self.accountant, first_of(self.releases, steps), self.delta)

    def with_steps(self, steps: int) -> PrivacyPlan:
        """The plan of a longer or shorter run with the same noise."""
        changed = replace(self, steps=steps)
        return replace(changed, epsilon=epsilon_of(self.accountant, changed.releases, self.delta))

    def dump(self) -> dict[str, Any]:
        """Plain values, q included; an infinite ε is None, which JSON has."""
        epsilon = self.epsilon if math.isfinite(self.epsilon) else None
        return {**asdict(self), "epsilon": epsilon, "sample_rate": self.sample_rate}

    @classmethod
    def from_dump(cls, values: dict[str, Any]) -> PrivacyPlan:
        """The inverse of :meth:`dump`, also after JSON."""
        known = {name: value for name, value in values.items() if name != "sample_rate"}
        if known.get("adaptive_clipping") is not None:
            known["adaptive_clipping"] = AdaptiveClipping(**known["adaptive_clipping"])
        if known["epsilon"] is None:
            known["epsilon"] = math.inf
        known["noise_factors"] = tuple(known.get("noise_factors", (1.0,)))
        return cls(**known)


def with_budget(config: Config, plan: PrivacyPlan) -> Config:
    """The configuration with σ and T as solved, and σ_b as derived; ε follows from them."""
    adaptive = config.privacy.adaptive_clipping
    if adaptive is not None and plan.adaptive_clipping is not None:
        known = {"count_noise": plan.adaptive_clipping.count_noise}
        adaptive = adaptive.model_copy(update=known)
    budget = {
        "adaptive_clipping": adaptive,
        "epsilon": None,
        "noise_multiplier": plan.noise_multiplier,
        "steps": plan.steps,
        "accountant": plan.accountant,
    }
    return config.model_copy(update={"privacy": config.privacy.model_copy(update=budget)})


def solve_budget(config: Config, *, near: float | None = None) -> PrivacyPlan:
    """Of ε, σ and T the one that is open.

    Args:
        config: the budget, and what q depends on.
        near: a σ that is known to be close, where σ is solved.

    Raises:
        ConfigError: q > 1, δ ≥ 1/N, or a budget that cannot be met.
    """
    privacy, n = config.privacy, data_facts(config.data).num_examples
    batch = config.data.expected_batch_size
    if batch > n:
        raise ConfigError(
            "data.expected_batch_size",
            batch,
            f"q = {batch}/{n} is above 1",
            f"Use at most {n}, the number of examples",
        )
    if privacy.delta >= 1 / n:
        raise ConfigError(
            "privacy.delta",
            privacy.delta,
            f"δ must be below 1/N = 1/{n} = {1 / n:.3g}: a larger one allows to publish an example",
            f"Use {_round_down(0.1 / n):g}, say",
        )
    factors = (1.0,) if privacy.noise_schedule is None else privacy.noise_schedule.factors
    schedule = NoiseSchedule(factors)
    common: dict[str, Any] = {
        "sample_rate": batch / n,
        "delta": privacy.delta,
        "schedule": schedule,
    }
    sigma, steps = privacy.noise_multiplier, privacy.steps
    try:
        if sigma is None:
            assert privacy.epsilon is not None
            assert steps is not None
            sigma = solve_noise_multiplier(
                privacy.accountant, target=privacy.epsilon, steps=steps, near=near, **common
            )
        elif steps is None:
            assert privacy.epsilon is not None
            steps = solve_steps(
                privacy.accountant, target=privacy.epsilon, noise_multiplier=sigma, **common
            )
    except BudgetError as error:
        raise ConfigError(
            "privacy.epsilon",
            privacy.epsilon,
            f"the budget cannot be met: {error}",
            "Change privacy.epsilon, privacy.noise_multiplier, privacy.steps or "
            "data.expected_batch_size",
        ) from error
    if steps < len(factors):
        raise ConfigError(
            "privacy.noise_schedule.parts",
            len(factors),
            f"the run has {steps} steps",
            "Give it fewer parts, or more privacy.steps",
        )
    releases = schedule.releases(sigma, batch / n, steps)
    plan = PrivacyPlan(
        num_examples=n,
        expected_batch_size=batch,
        views=config.augment.views,
        noise_multiplier=sigma,
        max_grad_norm=privacy.max_grad_norm,
        steps=steps,
        delta=privacy.delta,
        accountant=privacy.accountant,
        epsilon=epsilon_of(privacy.accountant, releases, privacy.delta),
        clipping=privacy.clipping,
        adaptive_clipping=adaptive_clipping(config, sigma),
        noise_factors=factors,
    )
    check_countable(plan)
    return plan


def check_countable(plan: PrivacyPlan) -> None:
    """Refuses a plan that has noise, and of which nobody could say what it costs.

    Raises:
        ConfigError: there is so much to count, or so little noise.
    """
    if plan.noise_multiplier > 0 and math.isinf(plan.epsilon):
        raise ConfigError(
            "privacy.noise_multiplier",
            plan.noise_multiplier,
            f"what {plan.steps} steps cost at δ = {plan.delta:g} is more than "
            f"privacy.accountant = {plan.accountant} can count",
            "Raise it, take privacy.accountant=rdp, or say with 0 that there is no privacy",
        )


def adaptive_clipping(config: Config, noise_multiplier: float) -> AdaptiveClipping | None:
    """How C is to move; None if it stays.

    Args:
        config: what was asked for, and B̄.
        noise_multiplier: the first σ.

    Raises:
        ConfigError: counting would cost more than a step may.
    """
    section = config.privacy.adaptive_clipping
    if section is None:
        return None
    count_noise = section.count_noise or config.data.expected_batch_size / 20
    adaptive = AdaptiveClipping(section.quantile, section.learning_rate, count_noise)
    try:
        adaptive.sum_noise_multiplier(noise_multiplier)
    except ValueError as error:
        raise ConfigError(
            "privacy.adaptive_clipping.count_noise",
            count_noise,
            f"counting the examples within C would cost more than the whole step: {error}",
            "Raise it (the default is B̄/20, so a larger data.expected_batch_size does too)",
        ) from error
    return adaptive


def _round_down(value: float) -> float:
    """To one significant digit."""
    return float(f"{value:.0e}")
