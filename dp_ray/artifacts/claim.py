"""What a run may claim: its privacy statement, made of the ledger's sums and the plan."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from dp_ray.artifacts.result import Outcome, with_search
from dp_ray.artifacts.score import assumption
from dp_ray.artifacts.statement import Statement, Sums
from dp_ray.config.run import Config
from dp_ray.gradients.engines.registry import is_users_own
from dp_ray.json_text import finite
from dp_ray.privacy.accounting import epsilon_by_accountant
from dp_ray.privacy.mechanism import MECHANISMS, mechanism_of
from dp_ray.privacy.plan import PrivacyPlan

ASSUMPTIONS = (
    "Two data sets are neighbours if one has one example more; a person with several examples is "
    "covered for each of them, not for all at once.",
    "The number of examples, the configuration and the labels' names are public.",
    "The configuration was chosen without looking at the private data; a search on it costs more.",
    "Only the release folder is published; the run key and the private folder stay secret.",
    "The run's folder was not copied, or put back as it was earlier, and gone on with twice; nor "
    "was a model published that another run made with the same key (--replay-key).",
    "Run time, memory and traffic are not observed by the adversary.",
    "The network's outputs depend on its tensors, one example and the run's own randomness alone: "
    "each run checks that on made-up images, as far as Python objects can be read. It assumes it "
    "of all other images, and of what cannot be read: files, clocks, other processes and threads, "
    "installed packages, extensions in C, and what Python counts by itself.",
    "An example's gradient is rounded alike whichever worker computes it, and whatever else is in "
    "its microbatch: on made-up images, before its first step, each run compares workers bit for "
    "bit, the other examples of a microbatch bit for bit on a CPU and to within rounding on a GPU, "
    "and places in a microbatch to within rounding. It assumes it of all other images.",
    "The noise is Gaussian: its numbers are computed in float64 from a cipher (AES-256) with a key "
    "of the operating system, added in float64, and the sum is rounded to float32. No theorem "
    "covers that rounding.",
)

REPLAYED = (
    "This run repeats the draws and the noise of another one (--replay-key): publish at most one "
    "of the two models, because their difference may show sums of gradients without noise."
)

PRETRAINED = (
    "Training started from weights that were trained on public data, as the user declares; ε does "
    "not cover what those were trained on."
)

OWN_MECHANISM = (
    "The mechanism is the user's own code: that its noise costs what it says was not checked by "
    "dp-ray."
)

OWN_ENGINE = (
    "Gradients were computed and clipped by an engine that is the user's own code: dp-ray compared "
    "it with its own on made-up images, before the first step, and assumes the same of all others."
)

CHOICE = next(i for i, text in enumerate(ASSUMPTIONS) if "a search on it" in text)
"""Which of them speaks of how the configuration was chosen."""


def privacy_statement(
    config: Config,
    plan: PrivacyPlan,
    outcome: Outcome,
    *,
    replay: bool,
    score: dict[str, Any] | None = None,
) -> Statement:
    """Return what may be claimed, by whose word, under which assumptions.

    Args:
        config: as trained.
        plan: the privacy plan.
        outcome: how the run ended.
        replay: whether the run repeats another one with its key.
        score: from :func:`published_score`; exact where nothing is published.
    """
    mechanism = mechanism_of(plan)
    spent = epsilon_by_accountant(outcome.history, plan.delta)
    figures: dict[str, Any] = {"metrics": outcome.metrics} if score is None else score
    return Statement(
        epsilon=finite(outcome.epsilon),
        delta=plan.delta,
        accountant=plan.accountant,
        epsilon_by_accountant={name: finite(value) for name, value in spent.items()},
        **with_search(config, outcome.epsilon),
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        steps=outcome.steps,
        charges=outcome.charges,
        noise_factors=list(plan.noise_factors),
        max_grad_norm=plan.max_grad_norm,
        clipping=plan.clipping,
        adaptive_clipping=plan.adaptive_clipping,
        views=plan.views,
        expected_batch_size=plan.expected_batch_size,
        num_examples=plan.num_examples,
        mechanism=mechanism.sentence,
        released=Sums.of(outcome.history),
        **({} if mechanism.accounts_each_charge else {"charged": Sums.of(outcome.charged)}),
        unit_of_privacy="one training example, with all of its views",
        adjacency="add or remove one example",
        replay=replay,
        warning=REPLAYED if replay else None,
        **figures,
        data_evaluation=config.data.evaluation,
        assumptions=_assumptions(config, plan, outcome),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: version(name) for name in ("dp-ray", "opacus", "dp-accounting")},
        },
    )


def _assumptions(config: Config, plan: PrivacyPlan, outcome: Outcome) -> list[str]:
    assumptions = [*ASSUMPTIONS, assumption(config, outcome.metric_names)]
    if config.privacy.search_epsilon is not None:
        assumptions[CHOICE] = (
            "The configuration was chosen by a search on the same data: epsilon_with_search counts "
            "it, and epsilon does not."
        )
    if config.model.pretrained is not None:
        assumptions.append(PRETRAINED)
    if plan.mechanism not in MECHANISMS:
        assumptions.append(OWN_MECHANISM)
    if any(map(is_users_own, outcome.engines)):
        assumptions.append(OWN_ENGINE)
    return assumptions
