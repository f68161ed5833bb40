"""How a run draws units and adds noise, and what an accountant is told of it.

A mechanism is chosen by name (``privacy.mechanism``) and made from a :class:`PrivacyPlan`. It only
describes: no key reaches it, and nothing here draws noise. :mod:`dp_ray.privacy.noise` draws what
it describes, on rank 0.
"""

from __future__ import annotations

import bisect
import importlib
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from dp_ray.errors import ConfigError, unknown_name
from dp_ray.imports import USER_ERRORS, cause_of, make_own
from dp_ray.privacy.history import History, room
from dp_ray.privacy.sampling import Sampler

if TYPE_CHECKING:
    from dp_ray.privacy.plan import PrivacyPlan

DEFAULT = "gaussian"

MECHANISMS = {
    DEFAULT: "dp_ray.privacy.gaussian:Gaussian",
}
"""Name → import path of a :class:`Mechanism`."""


class Cost(NamedTuple):
    """What the ledger charges for one step: σ and the rate at which units join it."""

    noise_multiplier: float
    sample_rate: float


@dataclass(frozen=True)
class StepNoise:
    """The noise of one step.

    Attributes:
        on_sum: standard deviation on the clipped sum, over its sensitivity.
        on_count: standard deviation on the count of gradients within C; None releases no count.
        feedback: weights of the noises of the steps before, the latest first. The noise of step t
            is ``z_t + Σ_j feedback[j] · noise_{t-1-j}``, in units of ``on_sum``, with z_t standard
            normal from the stream of step t; there is none before step 0. Of one length in a run,
            which is 0 for noise that is independent of other steps.
    """

    on_sum: float
    on_count: float | None = None
    feedback: tuple[float, ...] = ()


@dataclass(frozen=True)
class Mechanism(ABC):
    """Who may join each step, its noise, and its cost; all a function of the public plan.

    Attributes:
        plan: σ, T, N, B̄ and the mechanism's own options.
    """

    plan: PrivacyPlan

    may_redraw: ClassVar[bool] = True
    """Whether a step may be drawn again, with fresh randomness and a charge of its own, when its
    sum cannot be had again. Noise that is correlated between steps must not be."""

    @abstractmethod
    def check(self) -> None:
        """Refuse a plan that the mechanism cannot run.

        Raises:
            ConfigError: an option is unknown or does not fit.
        """

    @property
    @abstractmethod
    def sampler(self) -> Sampler:
        """Who joins a step; runs on every worker."""

    @abstractmethod
    def cost_at(self, step: int) -> Cost:
        """Return what a step is charged with."""

    @abstractmethod
    def noise_at(self, step: int) -> StepNoise:
        """Return the noise of a step."""

    @abstractmethod
    def charges(self) -> History:
        """Return the charges of all T steps, in order."""

    def accounted(self, charged: History) -> History:
        """Return what an accountant takes for charges, of a plan or of a ledger.

        Args:
            charged: σ, rate and number of charges, in any order.
        """
        return charged

    @property
    def accounts_each_charge(self) -> bool:
        """Whether accountants take charges as they are: one sum for each."""
        return type(self).accounted is Mechanism.accounted

    def room(self, charged: History, cost: Cost) -> int:
        """Return how many further charges the plan covers; negative if it is exceeded.

        A planned charge covers one at the same rate that was noised as much or more.

        Args:
            charged: what a ledger has charged.
            cost: of each further charge.
        """
        planned = self.charges()

        def left(rate: float) -> int:
            spent_here, planned_here = (
                tuple(entry for entry in history if entry[1] == rate)
                for history in (charged, planned)
            )
            return room(planned_here, spent_here, cost.noise_multiplier)

        exceeded = min((left(rate) for _, rate, _ in charged), default=0)
        return exceeded if exceeded < 0 else left(cost.sample_rate)

    def covers(self, charged: History) -> bool:
        """Return whether the plan covers what was charged.

        Args:
            charged: what a ledger has charged.
        """
        return self.room(charged, Cost(math.inf, self.plan.sample_rate)) >= 0

    def next_max_grad_norm(self, max_grad_norm: float, noised_count: float) -> float:
        """Return C of the next step, where a step's noise is on a count as well.

        Args:
            max_grad_norm: C of this step.
            noised_count: +½ for each gradient within C, -½ for each beyond, and noise.
        """
        del noised_count
        return max_grad_norm

    @property
    @abstractmethod
    def sentence(self) -> str:
        """The mechanism in one line, for the privacy statement."""


_LOOKED_AT = 1000
"""Steps of a plan whose description is checked; of more, those at equal distances and the ends."""


def check_description(mechanism: Mechanism) -> None:
    """Refuse a plan that a mechanism cannot run, and a description that contradicts itself.

    Raises:
        ConfigError: see :meth:`Mechanism.check`; or what it says of steps does not fit together.
    """
    mechanism.check()
    name = mechanism.plan.mechanism
    try:
        problem = _contradiction(mechanism)
    except ConfigError:
        raise
    except USER_ERRORS as error:
        problem = f"cannot describe its steps: {cause_of(error)}"
        raise ConfigError("privacy.mechanism", name, problem, "Repair it") from error
    if problem is not None:
        raise ConfigError("privacy.mechanism", name, problem, "Repair it")


def _contradiction(mechanism: Mechanism) -> str | None:
    steps, charges = mechanism.plan.steps, mechanism.charges()
    starts = list(itertools.accumulate((count for *_, count in charges), initial=0))
    if starts[-1] != steps:
        return f"charges() has {starts[-1]} charges for {steps} steps"
    ends = {step for start in starts for step in (start - 1, start) if 0 <= step < steps}
    length = len(mechanism.noise_at(0).feedback)
    for step in sorted({*ends, *range(0, steps, -(-steps // _LOOKED_AT))}):
        cost, noise = mechanism.cost_at(step), mechanism.noise_at(step)
        sigma = cost.noise_multiplier
        charged = charges[bisect.bisect_right(starts, step) - 1][:2]
        numbers = (*cost, noise.on_sum, noise.on_count or 0.0)
        checks = {
            f"has numbers that are negative or not finite: {numbers}": all(
                math.isfinite(number) and number >= 0 for number in numbers
            )
            and all(map(math.isfinite, noise.feedback)),
            f"has no noise, and is charged with σ = {sigma:g}": sigma == 0
            or (noise.on_sum > 0 and noise.on_count != 0),
            f"depends on other numbers of steps than step 0, {len(noise.feedback)} and {length}": (
                len(noise.feedback) == length
            ),
            "is not the same each time": (cost, noise)
            == (mechanism.cost_at(step), mechanism.noise_at(step)),
            f"costs {tuple(cost)}, and {charged} by charges()": tuple(cost) == charged,
            "has correlated noise, which must not be drawn again: set may_redraw = False": (
                not noise.feedback or not mechanism.may_redraw
            ),
        }
        for problem, holds in checks.items():
            if not holds:
                return f"step {step} {problem}"
    return None


def mechanism_of(plan: PrivacyPlan) -> Mechanism:
    """Return the mechanism that a plan names.

    Raises:
        ConfigError: there is none of that name, or it cannot be imported.
    """
    name = plan.mechanism
    if (path := MECHANISMS.get(name)) is not None:
        module, _, attribute = path.partition(":")
        made: Mechanism = getattr(importlib.import_module(module), attribute)(plan)
        return made
    if ":" not in name:
        raise unknown_name(
            "privacy.mechanism", name, "no such mechanism", MECHANISMS, own="my_pkg.my_module:Class"
        )
    own: Mechanism = make_own(name, "privacy.mechanism", Mechanism, plan)  # type: ignore[type-abstract]
    return own
