"""From a configuration to a plan: σ, q, T and ε solved and checked; reads no data.

What changes privacy is a :class:`PrivacyPlan`; what only changes speed and memory is not in it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from dp_ray.config.privacy import PrivacyConfig
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
from dp_ray.privacy.mechanism import DEFAULT, check_description, mechanism_of


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
        mechanism: name or import path of the mechanism.
        mechanism_arguments: its own options, by name.
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
    mechanism: str = DEFAULT
    mechanism_arguments: tuple[tuple[str, bool | int | float | str], ...] = ()

    @property
    def sample_rate(self) -> float:
        """q = B̄/N."""
        return self.expected_batch_size / self.num_examples

    @property
    def releases(self) -> History:
        """What T steps release, all that an accountant needs."""
        mechanism = mechanism_of(self)
        return mechanism.accounted(mechanism.charges())

    def released_with(self, noise_multiplier: float, steps: int) -> History:
        """Return the same of another σ and T."""
        return replace(self, noise_multiplier=noise_multiplier, steps=steps).releases

    def epsilon_after(self, steps: int) -> float:
        """ε of the first ``steps`` steps, as the accountant has it."""
        mechanism = mechanism_of(self)
        released = mechanism.accounted(first_of(mechanism.charges(), steps))
        return epsilon_of(self.accountant, released, self.delta)

    def with_steps(self, steps: int) -> PrivacyPlan:
        """The plan of a longer or shorter run with the same noise."""
        changed = replace(self, steps=steps)
        return replace(changed, epsilon=epsilon_of(self.accountant, changed.releases, self.delta))

    def dump(self) -> dict[str, Any]:
        """Plain values, q included; an infinite ε is None, which JSON has.

        The default mechanism is left out, as in plans from before there were others.
        """
        epsilon = self.epsilon if math.isfinite(self.epsilon) else None
        values = {**asdict(self), "epsilon": epsilon, "sample_rate": self.sample_rate}
        values["mechanism_arguments"] = dict(self.mechanism_arguments)
        for name, default in (("mechanism", DEFAULT), ("mechanism_arguments", {})):
            if values[name] == default:
                del values[name]
        return values

    @classmethod
    def from_dump(cls, values: dict[str, Any]) -> PrivacyPlan:
        """The inverse of :meth:`dump`, also after JSON."""
        known = {name: value for name, value in values.items() if name != "sample_rate"}
        if known.get("adaptive_clipping") is not None:
            known["adaptive_clipping"] = AdaptiveClipping(**known["adaptive_clipping"])
        if known["epsilon"] is None:
            known["epsilon"] = math.inf
        known["noise_factors"] = tuple(known.get("noise_factors", (1.0,)))
        known["mechanism_arguments"] = _pairs(known.get("mechanism_arguments", {}))
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
    plan = _solved(unsolved_plan(config, n), privacy, near)
    check_description(mechanism_of(plan))
    plan = plan.with_steps(plan.steps)
    check_countable(plan)
    return plan


def unsolved_plan(config: Config, num_examples: int) -> PrivacyPlan:
    """Return the plan of a configuration; open σ and T are 0, and ε is not computed."""
    privacy = config.privacy
    schedule = privacy.noise_schedule
    return PrivacyPlan(
        num_examples=num_examples,
        expected_batch_size=config.data.expected_batch_size,
        views=config.augment.views,
        noise_multiplier=privacy.noise_multiplier or 0.0,
        max_grad_norm=privacy.max_grad_norm,
        steps=privacy.steps or 0,
        delta=privacy.delta,
        accountant=privacy.accountant,
        epsilon=math.inf,
        clipping=privacy.clipping,
        adaptive_clipping=adaptive_clipping(config),
        noise_factors=(1.0,) if schedule is None else schedule.factors,
        mechanism=privacy.mechanism,
        mechanism_arguments=_pairs(privacy.mechanism_arguments),
    )


def _solved(plan: PrivacyPlan, privacy: PrivacyConfig, near: float | None) -> PrivacyPlan:
    """The plan with the one of σ and T that ε leaves open."""
    sigma, steps, target = privacy.noise_multiplier, privacy.steps, privacy.epsilon
    try:
        if sigma is None:
            assert target is not None
            assert steps is not None
            sigma = solve_noise_multiplier(
                plan.accountant, plan, target=target, steps=steps, near=near
            )
        elif steps is None:
            assert target is not None
            steps = solve_steps(plan.accountant, plan, target=target, noise_multiplier=sigma)
    except BudgetError as error:
        raise ConfigError(
            "privacy.epsilon",
            privacy.epsilon,
            f"the budget cannot be met: {error}",
            "Change privacy.epsilon, privacy.noise_multiplier, privacy.steps or "
            "data.expected_batch_size",
        ) from error
    return replace(plan, noise_multiplier=sigma, steps=steps)


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


def adaptive_clipping(config: Config) -> AdaptiveClipping | None:
    """How C is to move; None if it stays."""
    section = config.privacy.adaptive_clipping
    if section is None:
        return None
    count_noise = section.count_noise or config.data.expected_batch_size / 20
    return AdaptiveClipping(section.quantile, section.learning_rate, count_noise)


def _pairs(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(options.items()))


def _round_down(value: float) -> float:
    """To one significant digit."""
    return float(f"{value:.0e}")
