"""The ε of a search, and of a search with one more run after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dp_ray.privacy.accounting import AccountantName, epsilon_of
from dp_ray.privacy.history import History
from dp_ray.privacy.selection import Run, adaptive_epsilon, selection_epsilon
from dp_ray.search.search import Search, trial_count

HOW = {
    "public": "you declare the data public: nothing is charged",
    "private_selection": "best of a random number of independent trials, nothing else published "
    "(Papernot & Steinke 2022)",
    "compose": "every trial is charged, as its ledger says",
    "adaptive": "every trial is charged whole: what others released chose it, or stopped it",
}


@dataclass(frozen=True)
class SearchCost:
    """What a search spends of the privacy of its data.

    Attributes:
        epsilon: ε of all that the search publishes.
        delta: δ.
        accountant: who says so.
        how: in words.
    """

    epsilon: float
    delta: float
    accountant: AccountantName
    how: str


def search_cost(
    search: Search, spent: Sequence[History] | None = None, *, then: Sequence[Run] = ()
) -> SearchCost:
    """What a search costs; unless its data is public, never less than its most expensive trial.

    Args:
        search: its trials and budgets.
        spent: of each trial that was started, what its ledger says; None before the search, when
            what is planned counts.
        then: if given, one of these runs follows on the same data, whichever the search says.
    """
    mode, budgets = search.sweep.tune.privacy_mode, search.budgets
    delta, runs, accountant = budgets.delta, budgets.runs, budgets.accountant
    if mode == "public":
        alone = max(plan.epsilon for plan in budgets.solved.values()) if then else 0.0
        return SearchCost(alone, delta, accountant, HOW[mode])
    # Rényi accounting is looser than PRV, but for the smallest ε, where PRV's own error counts.
    single = max(epsilon_of(accountant, run, delta) for run in runs)
    if mode == "private_selection":
        cost = selection_epsilon(runs, trial_count(search.sweep.tune), delta, then=then)
        return SearchCost(max(cost, single), delta, "rdp", HOW[mode])
    if search.sweep.tune.is_adaptive:
        trials = max(search.most_trials, len(spent or ()))
        cost = adaptive_epsilon(runs, trials, delta, then=then)
        return SearchCost(max(cost, single), delta, "rdp", HOW["adaptive"])
    released = _merged(_planned(search) if spent is None else spent)
    options = [_merged([released, run]) for run in then] or [released]
    cost = max(epsilon_of(accountant, option, delta) for option in options)
    return SearchCost(cost, delta, accountant, HOW[mode])


def _planned(search: Search) -> list[History]:
    """What the trials that were drawn beforehand may release."""
    return [search.budgets.trial_at(point)[1].releases for point in search.points or ()]


def _merged(spent: Sequence[History]) -> History:
    """Equal noised sums counted together: the accountant takes time for each kind."""
    counts: dict[tuple[float, float], int] = {}
    for sigma, rate, steps in (entry for history in spent for entry in history):
        counts[sigma, rate] = counts.get((sigma, rate), 0) + steps
    return tuple((sigma, rate, steps) for (sigma, rate), steps in sorted(counts.items()))
