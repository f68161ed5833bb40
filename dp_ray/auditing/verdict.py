"""What an audit's runs show, held against what their ledgers claim."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.auditing.bounds import Audit, audit_one_run, audit_runs, refutes
from dp_ray.auditing.directory import AuditSettings
from dp_ray.auditing.neighbours import distances
from dp_ray.auditing.observers import scores
from dp_ray.auditing.tradeoff import audit_history, can_refute
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.history import History

_FARTHEST = 1.01
"""Over C. One example shifts the places of others, whose gradients a device may round otherwise."""


@dataclass(frozen=True)
class Claim:
    """What a run's ledger says.

    Attributes:
        history: every noised sum.
        epsilon: of them, by the tightest accountant: what is held against.
        stated: likewise, by the run's own accountant.
        delta: δ.
        num_examples: N.
    """

    history: History
    epsilon: float
    stated: float
    delta: float
    num_examples: int

    @classmethod
    def of(cls, run: RunDirectory) -> Claim:
        """Of a finished run.

        Raises:
            LedgerError: the ledger does not verify.
            RunError: the run key is missing.
        """
        ledger = run.read_ledger()
        plan = ledger.plan
        tight, stated = (
            epsilon_of(name, ledger.history, plan.delta) for name in ("pld", plan.accountant)
        )
        return cls(ledger.history, tight, stated, plan.delta, plan.num_examples)


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        epsilon_claimed: what the ledger's sums spend, by the tightest accountant.
        epsilon_stated: likewise, by the run's own accountant.
        epsilon_lower: with the confidence no less was spent, if the steps and q are the ledger's.
        epsilon_lower_of_any: likewise, whatever the mechanism.
        refuted: whether the claim is refuted by one of them, or one example moved a sum by more
            than C, on which the claim rests.
        can_refute: whether an attack that is always right would have refuted it.
        confidence: that both bounds hold.
        delta: δ of all three ε.
        guesses: of the attack that gives ``epsilon_lower``.
        right: how many of them are right.
        moved: how far one example moved a sum at the most, over C; None if none was looked at.
        moved_too_far: whether that is more than C allows.
        looks: sums that were looked at for that; none where all examples are gradient canaries,
            which say nothing of the network.
    """

    epsilon_claimed: float
    epsilon_stated: float
    epsilon_lower: float
    epsilon_lower_of_any: float
    refuted: bool
    can_refute: bool
    confidence: float
    delta: float
    guesses: int
    right: int
    moved: float | None = None
    moved_too_far: bool = False
    looks: int = 0

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def judge(
    settings: AuditSettings, runs: list[RunDirectory], included: list[NDArray[np.bool_]]
) -> Verdict:
    """Attacks finished runs.

    Args:
        settings: of the audit.
        runs: its runs.
        included: the coins of each.

    Raises:
        RunError: a run's files are missing or damaged.
    """
    claims = [Claim.of(run) for run in runs]
    claim = max(claims, key=lambda c: c.epsilon)
    seen, coins = (
        np.concatenate([scores(run.observations) for run in runs]),
        np.concatenate(included),
    )
    judge_by_coins = _judge_one if settings.runs == 1 else _judge_many
    verdict = judge_by_coins(seen, coins, claim, settings.significance)
    all_planted = settings.kind == "gradient" and settings.canaries >= claim.num_examples
    looked = [] if all_planted else runs
    moved = [distance for run in looked for distance in distances(run.neighbours)]
    most = max((math.inf if math.isnan(d) else d for d in moved), default=None)
    too_far = most is not None and most > _FARTHEST
    return replace(
        verdict,
        refuted=verdict.refuted or too_far,
        moved=most,
        moved_too_far=too_far,
        looks=len(moved),
    )


def _judge_one(
    seen: NDArray[np.float64], coins: NDArray[np.bool_], claim: Claim, significance: float
) -> Verdict:
    half = significance / 2  # there are two bounds
    any_ = audit_one_run(seen, coins, delta=claim.delta, significance=half)
    known = audit_history(seen, coins, claim.history, delta=claim.delta, significance=half)
    best: Audit = max(known, any_, key=lambda audit: audit.epsilon_lower)
    return Verdict(
        claim.epsilon,
        claim.stated,
        best.epsilon_lower,
        any_.epsilon_lower,
        known.refuted or refutes(any_, epsilon=claim.epsilon, delta=claim.delta),
        can_refute(claim.history, len(coins), significance=half),
        1 - significance,
        claim.delta,
        best.guesses,
        best.right,
    )


def _judge_many(
    seen: NDArray[np.float64], coins: NDArray[np.bool_], claim: Claim, significance: float
) -> Verdict:
    found = audit_runs(seen[coins], seen[~coins], delta=claim.delta, significance=significance)
    ideal = coins.astype(np.float64)
    reach = audit_runs(ideal[coins], ideal[~coins], delta=claim.delta, significance=significance)
    return Verdict(
        claim.epsilon,
        claim.stated,
        found.epsilon_lower,
        found.epsilon_lower,
        refutes(found, epsilon=claim.epsilon, delta=claim.delta),
        refutes(reach, epsilon=claim.epsilon, delta=claim.delta),
        found.confidence,
        claim.delta,
        found.guesses,
        found.right,
    )
