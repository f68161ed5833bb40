"""A mechanism with correlated noise, as somebody would add it: this file, and a line of registry.

Two bands of noise (Choquette-Choo et al. 2023, arXiv 2306.08153): noise C⁻¹z with C = I + ½·(one
below the diagonal). Units are in one of two groups, which take turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp_ray.errors import ConfigError
from dp_ray.privacy.history import History
from dp_ray.privacy.mechanism import Cost, Mechanism, StepNoise
from dp_ray.privacy.sampling import PoissonSampler, Shard, Streams

BANDS, BELOW = 2, 0.5
COLUMN_NORM = math.hypot(1.0, BELOW)


@dataclass(frozen=True)
class GroupSampler:
    """Poisson draws at rate b·q from one group a step."""

    within: PoissonSampler

    def groups(self, streams: Streams, shard: Shard) -> NDArray[np.int64]:
        """[n] the group of each unit; the same in all steps, as incarnations never change."""
        ids = np.arange(shard.start, shard.stop, dtype=np.uint64)
        return (streams(-1).words(ids, 1)[:, 0] % np.uint64(BANDS)).astype(np.int64)

    def draw(self, streams: Streams, step: int, shard: Shard) -> NDArray[np.int64]:
        """See :class:`~dp_ray.privacy.sampling.Sampler`."""
        drawn = self.within.draw(streams, step, shard)
        return drawn[self.groups(streams, shard)[drawn - shard.start] == step % BANDS]


class TwoBands(Mechanism):
    """See the module."""

    may_redraw = False

    def check(self) -> None:
        """See :class:`Mechanism`."""
        if self.plan.adaptive_clipping is not None or len(self.plan.noise_factors) > 1:
            raise ConfigError("privacy.mechanism", self.plan.mechanism, "C and σ stay", "Keep them")

    @property
    def sampler(self) -> GroupSampler:
        """See :class:`Mechanism`."""
        plan = self.plan
        return GroupSampler(PoissonSampler(plan.num_examples, BANDS * plan.expected_batch_size))

    def cost_at(self, step: int) -> Cost:
        """See :class:`Mechanism`."""
        del step
        return Cost(self.plan.noise_multiplier, BANDS * self.plan.sample_rate)

    def noise_at(self, step: int) -> StepNoise:
        """See :class:`Mechanism`."""
        del step
        return StepNoise(on_sum=self.plan.noise_multiplier, feedback=(-BELOW,))

    def charges(self) -> History:
        """See :class:`Mechanism`."""
        return ((*self.cost_at(0), self.plan.steps),)

    def accounted(self, charged: History) -> History:
        """See :class:`Mechanism`."""
        return tuple((s / COLUMN_NORM, rate, -(-count // BANDS)) for s, rate, count in charged)

    @property
    def sentence(self) -> str:
        """See :class:`Mechanism`."""
        return "DP-FTRL: two bands of Gaussian noise on sums of clipped per-example gradients"
