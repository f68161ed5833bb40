"""What a run's ledger says, verified: what ``dp-ray ledger`` prints."""

from __future__ import annotations

import secrets
from typing import Any

from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.errors import RunError, no_run
from dp_ray.imports import reading
from dp_ray.json_text import finite
from dp_ray.ledger.ledger import Ledger
from dp_ray.privacy.accounting import epsilon_by_accountant
from dp_ray.reporting.words import count, noise_in_words
from dp_ray.search.directory import SEARCH
from dp_ray.storage import open_folder


def ledger_facts(location: str, *, own_code: bool = False) -> dict[str, Any]:
    """Steps, repeats and ε of a run; changes nothing.

    Args:
        location: path or URI of the run.
        own_code: see :func:`~dp_ray.imports.reading`.

    Raises:
        RunError: there is no run, or its key is missing.
        LedgerError: the ledger does not verify.
        OwnCodeError: its mechanism is code that the user did not agree to run.
    """
    with reading(own_code=own_code):
        return {"run": location, "verified": True, **facts_of(_run(location).read_ledger())}


def facts_of(ledger: Ledger) -> dict[str, Any]:
    """The same of a ledger that was read."""
    plan = ledger.plan
    spent = epsilon_by_accountant(ledger.history, plan.delta)
    return {
        "sessions": len(ledger.sessions),
        "steps": ledger.steps,
        "steps_planned": plan.steps,
        "charges": ledger.charges,
        "charged_again": ledger.charges - ledger.steps,
        "repeated": sum(session.repeats for session in ledger.sessions),
        "repairs": ledger.repairs,
        "checkpoints": len(ledger.checkpoints),
        "declared": ledger.declared,
        "plan": plan.dump() | {"epsilon": finite(plan.epsilon)},
        "epsilon": finite(spent[plan.accountant]),
        "epsilon_by_accountant": {name: finite(value) for name, value in spent.items()},
    }


def repair_ledger(location: str, *, own_code: bool = False) -> None:
    """Accepts a damaged end and charges for what it may have held.

    Args:
        location: path or URI of the run.
        own_code: see :func:`~dp_ray.imports.reading`.

    Raises:
        RunError: there is no run, or its key is missing.
        LedgerError: more than the end is damaged, or another process writes it.
        OwnCodeError: its mechanism is code that the user did not agree to run.
    """
    with reading(own_code=own_code):
        _run(location).write_ledger(secrets.token_hex(8), repair=True).close()


def describe_ledger(facts: dict[str, Any]) -> str:
    """Lines for the terminal."""
    by_accountant = ", ".join(
        f"{name} {'none' if value is None else format(value, '.4f')}"
        for name, value in facts["epsilon_by_accountant"].items()
    )
    plan, planned = facts["plan"], facts["plan"]["epsilon"]
    lines = [
        f"chain         verifies ({count(facts['sessions'], 'session')}, "
        f"{count(facts['checkpoints'], 'checkpoint')})",
        f"steps         {facts['steps']} of {facts['steps_planned']} paid for",
        f"repeats       {count(facts['repeated'], 'step')} after a stop or crash, "
        f"{facts['charged_again']} of them charged again",
        f"charges       {count(facts['charges'], 'noised sum')} at {noise_in_words(plan)}, "
        f"q = {plan['sample_rate']:.5f}",
        f"ε spent       {by_accountant} (δ = {plan['delta']:g}); "
        f"{plan['accountant']} counts, of {'none' if planned is None else format(planned, '.4f')}",
    ]
    if facts["repairs"]:
        lines.append(f"repairs       {count(facts['repairs'], 'time')}, lost records charged for")
    if facts["declared"]:
        said = ", ".join(f"{field} = {value}" for field, value in facts["declared"].items())
        lines.append(f"declared      {said}, since a session that changed it")
    return "\n".join(lines)


def _run(location: str) -> RunDirectory:
    run = RunDirectory(open_folder(location))
    if not run.exists():
        raise no_run(run.root)
    if run.private.exists(SEARCH):
        raise RunError(
            f"{run.root} is a search, and each of its trials has a ledger: give one of "
            f"{run.private}/trials. What the search spent is in {run.root}/{Result.FILE}"
        )
    return run
