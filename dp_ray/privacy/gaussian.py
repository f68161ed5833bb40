"""The Gaussian mechanism on Poisson samples: independent noise, constant or decreasing.

With adaptive clipping a step releases a sum and a count, and together they cost what σ says
(:mod:`dp_ray.privacy.adaptive`).
"""

from __future__ import annotations

from dp_ray.errors import ConfigError
from dp_ray.privacy.history import History
from dp_ray.privacy.mechanism import Cost, Mechanism, StepNoise
from dp_ray.privacy.sampling import PoissonSampler
from dp_ray.privacy.schedule import NoiseSchedule


class Gaussian(Mechanism):
    """N(0, (σC)²) on each sum of a Poisson sample; see :class:`Mechanism`."""

    def check(self) -> None:
        """See :class:`Mechanism`."""
        plan = self.plan
        if plan.mechanism_arguments:
            raise ConfigError(
                "privacy.mechanism_arguments",
                dict(plan.mechanism_arguments),
                f"{plan.mechanism} takes none",
                "Remove them",
            )
        if plan.steps < len(plan.noise_factors):
            raise ConfigError(
                "privacy.noise_schedule.parts",
                len(plan.noise_factors),
                f"the run has {plan.steps} steps",
                "Give it fewer parts, or more privacy.steps",
            )
        if (adaptive := plan.adaptive_clipping) is None:
            return
        try:
            adaptive.sum_noise_multiplier(plan.noise_multiplier)
        except ValueError as error:
            raise ConfigError(
                "privacy.adaptive_clipping.count_noise",
                adaptive.count_noise,
                f"counting the examples within C would cost more than the whole step: {error}",
                "Raise it (the default is B̄/20, so a larger data.expected_batch_size does too)",
            ) from error

    @property
    def sampler(self) -> PoissonSampler:
        """See :class:`Mechanism`."""
        return PoissonSampler(self.plan.num_examples, self.plan.expected_batch_size)

    def cost_at(self, step: int) -> Cost:
        """See :class:`Mechanism`."""
        plan = self.plan
        sigma = self._schedule.noise_at(plan.noise_multiplier, step, plan.steps)
        return Cost(sigma, plan.sample_rate)

    def noise_at(self, step: int) -> StepNoise:
        """See :class:`Mechanism`."""
        sigma, adaptive = self.cost_at(step).noise_multiplier, self.plan.adaptive_clipping
        if adaptive is None:
            return StepNoise(on_sum=sigma)
        return StepNoise(on_sum=adaptive.sum_noise_multiplier(sigma), on_count=adaptive.count_noise)

    def charges(self) -> History:
        """See :class:`Mechanism`."""
        plan = self.plan
        return self._schedule.releases(plan.noise_multiplier, plan.sample_rate, plan.steps)

    def next_max_grad_norm(self, max_grad_norm: float, noised_count: float) -> float:
        """See :class:`Mechanism`."""
        adaptive = self.plan.adaptive_clipping
        if adaptive is None:
            return max_grad_norm
        return adaptive.next_norm(max_grad_norm, noised_count, self.plan.expected_batch_size)

    @property
    def sentence(self) -> str:
        """See :class:`Mechanism`."""
        counts = (
            ""
            if self.plan.adaptive_clipping is None
            else " and on counts of those within the bound"
        )
        return (
            "DP-SGD: Gaussian mechanism on sums of clipped per-example gradients"
            f"{counts}, Poisson sampling"
        )

    @property
    def _schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.plan.noise_factors)
