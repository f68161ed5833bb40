"""What an audit's runs show, held against what their ledgers claim."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.auditing.bounds import Audit, audit_one_run, audit_runs, refutes
from dp_ray.auditing.directory import AuditSettings, Verdict
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
    return verdict.model_copy(
        update={
            "refuted": verdict.refuted or too_far,
            "moved": most,
            "moved_too_far": too_far,
            "looks": len(moved),
        }
    )


def _judge_one(
    seen: NDArray[np.float64], coins: NDArray[np.bool_], claim: Claim, significance: float
) -> Verdict:
    half = significance / 2  # there are two bounds
    any_ = audit_one_run(seen, coins, delta=claim.delta, significance=half)
    known = audit_history(seen, coins, claim.history, delta=claim.delta, significance=half)
    best: Audit = max(known, any_, key=lambda audit: audit.epsilon_lower)
    return Verdict(
        epsilon_claimed=claim.epsilon,
        epsilon_stated=claim.stated,
        epsilon_lower=best.epsilon_lower,
        epsilon_lower_of_any=any_.epsilon_lower,
        refuted=known.refuted or refutes(any_, epsilon=claim.epsilon, delta=claim.delta),
        can_refute=can_refute(claim.history, len(coins), significance=half),
        confidence=1 - significance,
        delta=claim.delta,
        guesses=best.guesses,
        right=best.right,
    )


def _judge_many(
    seen: NDArray[np.float64], coins: NDArray[np.bool_], claim: Claim, significance: float
) -> Verdict:
    found = audit_runs(seen[coins], seen[~coins], delta=claim.delta, significance=significance)
    ideal = coins.astype(np.float64)
    reach = audit_runs(ideal[coins], ideal[~coins], delta=claim.delta, significance=significance)
    return Verdict(
        epsilon_claimed=claim.epsilon,
        epsilon_stated=claim.stated,
        epsilon_lower=found.epsilon_lower,
        epsilon_lower_of_any=found.epsilon_lower,
        refuted=refutes(found, epsilon=claim.epsilon, delta=claim.delta),
        can_refute=refutes(reach, epsilon=claim.epsilon, delta=claim.delta),
        confidence=found.confidence,
        delta=claim.delta,
        guesses=found.guesses,
        right=found.right,
    )
