"""An audit in words: what ``dp-ray audit`` prints."""

from __future__ import annotations

from dp_ray.artifacts.result import Ending
from dp_ray.auditing.directory import AuditOutcome, AuditSettings
from dp_ray.reporting.words import count, describe_epsilon

_KINDS = {"gradient": "gradient canary", "mislabelled": "mislabelled canary"}


_STOPPED = "stopped       go on with the same command and --resume"

_TOO_FEW = (
    "mind          with so few canaries or runs nothing could have refuted this claim: give more"
)


def describe_start(settings: AuditSettings, place: str) -> str:
    """What an audit is about to do, and what that costs."""
    if settings.runs == 1:
        planted = f"{_canaries(settings.canaries, settings.kind)} by fair coins in one run"
    else:
        planted = f"a {_KINDS[settings.kind]} in every other of {count(settings.runs, 'run')}"
    return (
        f"audit         {planted}, in the place of examples\n"
        f"mind          it trains on the data and publishes nothing: its models are spoiled, and "
        f"{place} stays secret"
    )


def describe_audit(outcome: AuditOutcome | Ending) -> str:
    """Return what an audit found, in words."""
    if not isinstance(outcome, AuditOutcome):
        return _STOPPED
    lower, claimed, delta = outcome.epsilon_lower, outcome.epsilon_claimed, outcome.delta
    sure = f"{100 * outcome.confidence:g}% confidence"
    known = "" if outcome.runs > 1 else ", if the ledger is right on q and steps"
    lines = [
        f"attack        {outcome.right} of {outcome.guesses} guesses right on "
        f"{_canaries(outcome.canaries, outcome.kind)} in {count(outcome.runs, 'run')}",
        f"lower bound   {describe_epsilon(lower, delta)}, with {sure}{known}",
    ]
    if known:
        lines.append(f"              ε = {outcome.epsilon_lower_of_any:.4f} in any case")
    lines.append(
        f"claimed       {describe_epsilon(claimed, delta)}, as pld says of the ledger "
        f"({outcome.accountant} states {outcome.epsilon_stated:.4f})"
    )
    moved = outcome.moved
    if moved is not None:
        lines.append(
            f"one example   moved a sum by {moved:.4f} C at the most, in "
            f"{count(outcome.looks, 'look')}; "
            "C is what the noise is scaled to"
        )
    if outcome.refuted:
        why = []
        if outcome.moved_too_far:
            why.append(f"one example moved a sum by {moved:.4f} C, and the ledger's ε rests on C")
        if lower >= claimed or not why:
            why.append(f"the run shows ε = {lower:.4f}, and its ledger claims {claimed:.4f}")
        lines.append(
            f"verdict       REFUTED: {'; '.join(why)}. Publish no model of this configuration and "
            "code"
        )
    else:
        lines.append(f"verdict       not refuted: {lower:.4f} ≤ {claimed:.4f}")
    if not outcome.can_refute:
        lines.append(_TOO_FEW)
    return "\n".join([*lines, f"keep secret   {outcome.path}"])


def describe_verdict(outcome: AuditOutcome | Ending) -> str:
    """Return the same for a job's log, which others may read: no figure, as all are of the data."""
    if not isinstance(outcome, AuditOutcome):
        return _STOPPED
    verdict = "REFUTED" if outcome.refuted else "not refuted"
    lines = [f"verdict       {verdict}", *([] if outcome.can_refute else [_TOO_FEW])]
    return "\n".join([*lines, f"keep secret   {outcome.path}, where the figures are"])


def _canaries(number: int, kind: str) -> str:
    one = _KINDS[kind]
    return f"1 {one}" if number == 1 else f"{number:,} {one.removesuffix('y')}ies"
