"""A clipping norm that follows a quantile of the gradients' norms, privately.

Andrew et al. 2021 (arXiv 1905.03871), algorithm 1: each step also releases how many gradients were
within C, with noise, and C moves until the share of them is the one that was asked for.

C is ``max_grad_norm`` of a step, σ_b the ``count_noise``, σ the ``noise_multiplier`` that the step
is charged with, B̄ the ``expected_batch_size``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dp_ray.gradients.clipping import SMALLEST_CLIP

LARGEST_CLIP = 1e9
"""Where C stops growing."""

COUNT_SENSITIVITY = 0.5
"""Examples are counted as +½ or -½, so that one more or less moves the count by ½ and not by 1."""


@dataclass(frozen=True)
class AdaptiveClipping:
    """How C moves.

    Attributes:
        quantile: share of the gradients that are to be within C.
        learning_rate: η of the geometric update.
        count_noise: σ_b, standard deviation of the noise on the count of examples.
    """

    quantile: float
    learning_rate: float
    count_noise: float

    def sum_noise_multiplier(self, noise_multiplier: float) -> float:
        """Noise of the sum of gradients, over C, so that sum and count together are one release.

        The two are one Gaussian mechanism with ``σ⁻² = σ_sum⁻² + (2 σ_b)⁻²`` (their Theorem 1), and
        that σ is what the step is charged with: the sum gets a little more noise, to pay for the
        count.

        Args:
            noise_multiplier: σ.

        Raises:
            ValueError: the count alone spends more than σ allows: 2 σ_b is not above σ.
        """
        if noise_multiplier == 0:
            return 0.0
        share = noise_multiplier * COUNT_SENSITIVITY / self.count_noise
        if share >= 1:
            raise ValueError(
                f"count_noise = {self.count_noise:g} must be above {noise_multiplier / 2:g}, half "
                "of the noise multiplier"
            )
        return noise_multiplier / math.sqrt(1 - share**2)

    def next_norm(
        self, max_grad_norm: float, noised_count: float, expected_batch_size: int
    ) -> float:
        """C of the next step: a function of releases alone.

        Args:
            max_grad_norm: C of this step.
            noised_count: +½ for each gradient within C, -½ for each beyond, and noise.
            expected_batch_size: B̄.
        """
        within = min(max(noised_count / expected_batch_size + 0.5, 0.0), 1.0)
        moved = max_grad_norm * math.exp(self.learning_rate * (self.quantile - within))
        return min(max(moved, SMALLEST_CLIP), LARGEST_CLIP)
