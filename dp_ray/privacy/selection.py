"""What a search costs: choosing among models that were each trained with privacy costs more.

- Best of a random number of independent runs: Papernot & Steinke 2022 (arXiv 2110.03620),
  Theorems 2 and 6, through dp-accounting's Rényi accountant.
- Runs that were chosen, or stopped, by what earlier ones released: adaptive composition.

Runs of a search differ in σ, q and T. Their Rényi curves differ even where their ε is the same, so
the bound is taken on the largest of the curves at each order: the divergence of a mixture is at
most that of its worst part (quasi-convexity: van Erven & Harremoës 2014, Theorem 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from dp_accounting.dp_event import DpEvent, RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray

from dp_ray.privacy.history import History

Run = History
"""What one run may release."""

Distribution = Literal["poisson", "geometric", "truncated_negative_binomial"]

ORDERS = (
    *(1 + i / 20 for i in range(1, 200)),
    *range(11, 65),
    *range(68, 257, 4),
    *(320, 512, 1024),
)
"""Rényi orders; a bound holds at each of them, so more make it tighter and never wrong."""


@dataclass(frozen=True)
class TrialCount:
    """The random number of runs of a private selection.

    Attributes:
        distribution: its name.
        mean: expected number of runs, at least 1.
        shape: η > 0 of the truncated negative binomial distribution; 1 is the geometric one. Not
            used by the others.
    """

    distribution: Distribution
    mean: float
    shape: float = 1.0

    @property
    def eta(self) -> float:
        """Shape as the paper has it; infinite for the Poisson distribution."""
        if self.distribution == "poisson":
            return math.inf
        return 1.0 if self.distribution == "geometric" else self.shape

    def draw(self, share: float) -> int:
        """The number below which that share of the distribution lies.

        Args:
            share: a uniform number in [0, 1) that nobody else knows: the bounds hold only while
                the number of runs is a secret.

        Returns:
            At least 1, but for the Poisson distribution, which may say 0.
        """
        from scipy import stats

        if self.distribution == "poisson":
            return max(int(stats.poisson.ppf(share, self.mean)), 0)
        if self.mean == 1:
            return 1
        whole = stats.nbinom(self.eta, self._gamma())
        at_zero = float(whole.pmf(0))  # cut off: the count starts at 1
        return max(int(whole.ppf(at_zero + share * (1 - at_zero))), 1)

    def _gamma(self) -> float:
        """γ of Definition 1, solved from the mean."""
        from scipy.optimize import brentq

        def mean(gamma: float) -> float:
            return float(self.eta * (1 - gamma) / (gamma * (1 - gamma**self.eta)))

        return float(brentq(lambda gamma: mean(gamma) - self.mean, 1e-9, 1 - 1e-9, xtol=1e-15))


def selection_epsilon(
    runs: Sequence[Run], count: TrialCount, delta: float, *, then: Sequence[Run] = ()
) -> float:
    """ε of publishing the best of a random number of independent runs, and nothing of the others.

    Args:
        runs: each that the search may draw, not only those that it did draw.
        count: the distribution of their number.
        delta: δ in (0, 1).
        then: if given, one of these follows on the same data, whichever the search says.

    Returns:
        An upper bound; ``inf`` if a run has no noise.
    """
    if any(sigma == 0 for run in runs for sigma, _, _ in run):
        return math.inf
    accountant = _Accountant(ORDERS)
    accountant.compose(RepeatAndSelectDpEvent(_WorstOf(tuple(runs)), count.mean, count.eta))
    return _with_another(accountant, then, delta)


def adaptive_epsilon(
    runs: Sequence[Run], trials: int, delta: float, *, then: Sequence[Run] = ()
) -> float:
    """ε of publishing all of a fixed number of runs, each chosen by what the others released.

    Each choice is one of ``runs``, so the whole is at most ``trials`` times the worst Rényi curve:
    at each order, whatever is chosen next stays within it (fully adaptive composition; Feldman &
    Zrnic 2021, arXiv 2008.11193). A run that was stopped early counts as a whole one: when it was
    stopped depends on the data.

    Args:
        runs: each that the search may choose.
        trials: most runs there will be.
        delta: δ in (0, 1).
        then: if given, one of these follows on the same data, whichever the search says.
    """
    if any(sigma == 0 for run in runs for sigma, _, _ in run):
        return math.inf
    accountant = _Accountant(ORDERS)
    accountant.compose(_WorstOf(tuple(runs)), trials)
    return _with_another(accountant, then, delta)


def _with_another(accountant: RdpAccountant, runs: Sequence[Run], delta: float) -> float:
    if runs:
        accountant.compose(_WorstOf(tuple(runs)))
    return float(accountant.get_epsilon(delta))


@dataclass(frozen=True)
class _WorstOf(DpEvent):  # type: ignore[misc]
    """One of these runs, whichever is worst at each order."""

    runs: tuple[Run, ...]


class _Accountant(RdpAccountant):  # type: ignore[misc]
    """dp-accounting's Rényi accountant, which also knows :class:`_WorstOf`."""

    _rdp: NDArray[np.float64]

    def _maybe_compose(self, event: DpEvent, count: int, do_compose: bool) -> object:
        if not isinstance(event, _WorstOf):
            refusal: object = super()._maybe_compose(event, count, do_compose)
            return refusal
        if do_compose:
            self._rdp = self._rdp + count * np.max([_curve(run) for run in event.runs], axis=0)
        return None


@cache
def _curve(run: Run) -> NDArray[np.float64]:
    """[orders] Rényi divergences of one run, by Opacus.

    dp-accounting's series for orders that are no whole numbers is loose where q is large.
    """
    from opacus.accountants.analysis.rdp import compute_rdp

    total = np.zeros(len(ORDERS))
    for sigma, rate, steps in run:
        curve = compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=list(ORDERS))
        total += np.asarray(curve, dtype=np.float64)
    # dp-accounting would take NaN for no divergence at all.
    return np.nan_to_num(total, nan=math.inf, posinf=math.inf)
