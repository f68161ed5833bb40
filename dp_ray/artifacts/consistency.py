"""Whether the documents of a release agree: statement, configuration and the ledger's sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from dp_ray.artifacts.statement import Statement, Sums
from dp_ray.config.run import Config
from dp_ray.imports import may_import
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.history import History
from dp_ray.privacy.mechanism import MECHANISMS, mechanism_of
from dp_ray.privacy.plan import PrivacyPlan, unsolved_plan

_SAME = {
    "delta": "privacy.delta",
    "noise_multiplier": "privacy.noise_multiplier",
    "max_grad_norm": "privacy.max_grad_norm",
    "clipping": "privacy.clipping",
    "adaptive_clipping": "privacy.adaptive_clipping",
    "accountant": "privacy.accountant",
    "expected_batch_size": "data.expected_batch_size",
    "num_examples": "data.num_examples",
    "data_evaluation": "data.evaluation",
    "views": "augment.views",
}
"""Field of the statement → field of the configuration; both say the same."""

_MAY_BE_OPEN = ("noise_multiplier", "num_examples")
"""Null in a configuration from which they are solved, or whose data is known by name."""

_AGREES = 1e-2
"""By so much of ε other versions of an accountant may differ."""


def can_compare_sums(config: Config) -> bool:
    """Return whether what config.yaml allows is known: its mechanism may be called here."""
    name = config.privacy.mechanism
    return name in MECHANISMS or may_import(name)


def disagreement(
    statement: Statement,
    config: Config,
    history: History | None = None,
) -> str | None:
    """Return the first contradiction among the documents of a release; None if they agree.

    Args:
        statement: privacy.json.
        config: the contents of config.yaml.
        history: the ledger's noised sums; by default those that the statement lists. Sums are not
            compared with config.yaml where :func:`can_compare_sums` is false.
    """
    parts = (
        _settings(statement, config),
        _sums(statement, history),
        _allowed(statement, config) if can_compare_sums(config) else (),
        _epsilons(statement, config),
    )
    return next(chain(*parts), None)


def _settings(statement: Statement, config: Config) -> Iterator[str]:
    """What both documents say."""
    stated, values = statement.dump(), config.dump()
    for name, field in _SAME.items():
        if name == "accountant" and statement.is_of_search:
            continue  # the one that counted the search
        section, _, key = field.partition(".")
        said, configured = stated[name], values[section][key]
        if isinstance(said, dict) and isinstance(configured, dict):  # what is open was derived
            configured = {**said, **{k: v for k, v in configured.items() if v is not None}}
        if said != configured and (configured is not None or name not in _MAY_BE_OPEN):
            yield f"{name} is {said} in the statement, and {field} is {configured} in config.yaml"
    noise, configured = statement.test_accuracy_noise, config.data.evaluation_noise
    if noise != configured:
        yield f"test_accuracy_noise is {noise}, and data.evaluation_noise {configured}"
    factors, configured = tuple(statement.noise_factors), _plan(statement, config).noise_factors
    if factors != configured:
        yield f"noise_factors are {factors} in the statement, and {configured} by config.yaml"


def _sums(statement: Statement, history: History | None) -> Iterator[str]:
    """What was released, and what was paid for."""
    listed = statement.history
    if history is not None and listed != history:
        yield f"the statement lists the noised sums {listed}, and the ledger {history}"


def _allowed(statement: Statement, config: Config) -> Iterator[str]:
    """What was charged, and what config.yaml allows; calls the mechanism."""
    listed, steps = statement.history, config.privacy.steps
    plan = replace(_plan(statement, config), noise_multiplier=statement.noise_multiplier)
    mechanism = mechanism_of(plan if steps is None else replace(plan, steps=steps))
    charged = listed if statement.charged is None else Sums.history(statement.charged)
    if statement.charged is None and not mechanism.accounts_each_charge:
        yield "what was charged is missing in the statement, and its mechanism needs it"
        return
    charges = sum(sums for _, _, sums in charged)
    if statement.charges != charges:
        yield f"charges are {statement.charges}, and the noised sums that are listed {charges}"
    if (accounted := mechanism.accounted(charged)) != listed:
        yield f"the noised sums {listed} are listed, and charges come to {accounted}"
    if steps is None:
        return
    if statement.steps > steps:
        yield f"{statement.steps} steps were taken, and privacy.steps is {steps}"
    if not mechanism.covers(charged):
        yield f"the noised sums {charged} are more than config.yaml allows: {mechanism.charges()}"


def _epsilons(statement: Statement, config: Config) -> Iterator[str]:
    """ε of the statement against its own list of sums, and against config.yaml."""
    privacy, epsilon = config.privacy, statement.own_epsilon
    spent = epsilon_of(privacy.accountant, statement.history, statement.delta)
    if not _agree(epsilon, spent):
        yield f"ε is {epsilon} in the statement, and {spent} by its noised sums"
    if (budget := privacy.epsilon) is not None:
        # Where σ was solved, all of the budget is spent with the last step.
        whole = privacy.noise_multiplier is None and statement.charges == privacy.steps
        if not _agree(epsilon, budget) and (whole or epsilon > budget):
            yield f"ε is {epsilon} in the statement, and privacy.epsilon is {budget}"
    total, before = statement.epsilon_with_search, privacy.search_epsilon
    none = before is None or math.isinf(epsilon)
    expected = None if none else (before or 0.0) + epsilon
    if total is None or expected is None:
        agree = total is expected
    else:
        agree = math.isclose(total, expected, rel_tol=1e-9)
    if not agree:
        yield (
            f"epsilon_with_search is {total} in the statement, and privacy.search_epsilon is "
            f"{before} in config.yaml"
        )


def _agree(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= _AGREES * other < math.inf


def _plan(statement: Statement, config: Config) -> PrivacyPlan:
    return unsolved_plan(config, statement.num_examples)
