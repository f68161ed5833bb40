"""A privacy statement in plain words: what is promised, to whom, and what is not."""

from __future__ import annotations

import math
from typing import Any

from dp_ray.artifacts.statement import Statement
from dp_ray.privacy.accounting import epsilon_curve
from dp_ray.reporting.words import count, noise_in_words

ACCOUNTANTS = {
    "prv": "PRV of Opacus (numerical composition, Gopi et al. 2021)",
    "rdp": "RDP of Opacus (Rényi orders, Mironov et al. 2019)",
    "pld": "PLD of dp-accounting (privacy loss distributions, Doroshenko et al. 2022)",
}

_PROFILE = tuple(10 ** (-power / 2) for power in range(2, 21))
"""δ at which ε is computed, beside the run's own: from 0.1 to 1e-10."""

_EXACT = "an exact accuracy of this run was published too, or may have been"
"""Why there may be noise on an accuracy, and no ε of it."""

_WEAK = 99.0
"""Per cent: a bound on guessing above it promises next to nothing."""


def privacy_profile(statement: Statement) -> list[tuple[float, float]]:
    """(δ, ε) pairs of training, by PLD, all of which hold at once; none without noise."""
    deltas = tuple(sorted({*_PROFILE, statement.delta}))
    pairs = zip(deltas, epsilon_curve(statement.history, deltas), strict=True)
    return [(delta, max(epsilon, 0.0)) for delta, epsilon in pairs if math.isfinite(epsilon)]


def guess_bound(pairs: list[tuple[float, float]]) -> float:
    """How often membership of one example can be told at most, if both are equally likely.

    Whoever guesses by a test with error rates a and b has a + e^ε b ≥ 1 - δ and b + e^ε a ≥ 1 - δ
    (Kairouz, Oh & Viswanath 2015, Theorem 2.1), so 1 - (a + b)/2 ≤ (e^ε + δ)/(1 + e^ε).

    Args:
        pairs: (δ, ε) that hold; the smallest bound counts.
    """
    # In terms of e^-ε, which does not overflow.
    return min(
        (1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon)) for delta, epsilon in pairs
    )


def promise(statement: Statement, profile: list[tuple[float, float]]) -> list[str]:
    """What the statement means, in paragraphs for somebody who has not met ε before.

    Args:
        statement: which.
        profile: from :func:`privacy_profile`.
    """
    epsilon, delta = statement.cost
    if epsilon is None:
        return [
            "This model was trained without noise. Nothing is promised: there is no ε, and the "
            "model is to be kept as secret as the images that it was trained on."
        ]
    pairs = [(delta, epsilon)] if statement.counts_search else [*profile, (delta, epsilon)]
    bound = math.ceil(1000 * guess_bound(pairs)) / 10
    meaning = (
        "Whatever can be learnt from the published model, almost the same could be learnt had any "
        "one of the training images been left out. So nobody can be sure from the model whether "
        "a given image was used, and little can be learnt about it."
    )
    if bound > _WEAK:
        meaning = (
            "The promise is weak: with numbers as large as these it is not ruled out that somebody "
            "can tell from the published model whether a given image was used to train it."
        )
    return [
        meaning,
        f"“Almost” is measured by two numbers, ε = {epsilon:.4f} and δ = {delta:g}; smaller is "
        "safer. Adding or leaving out one image makes no outcome more than "
        f"{_factor(epsilon)} times as likely (that is e to the power of ε), but for a probability "
        f"of {_one_in(delta)} (that is δ) on top.",
        "As a wager: suppose that somebody knows all other training images, the method and the "
        "model, and has to say whether one given image was used, where yes and no are equally "
        f"likely beforehand. Whatever they try, they are right at most {bound:.1f}% of the time; "
        "50% is tossing a coin. This is a bound for the worst case, not what an attack is known "
        "to reach.",
    ]


def method(statement: Statement) -> str:
    """How the promise is kept, in a paragraph."""
    q, views = statement.sample_rate, statement.views
    seen = "once" if views == 1 else f"in {count(views, 'randomly changed view')}, averaged"
    search = ""
    if statement.search is not None and statement.counts_search:
        search = f" The search that the model came out of is counted: {statement.search.how}."
    elif statement.counts_search:
        search = " What a search spent before, to find the configuration, is added."
    return (
        f"In each of {count(statement.steps, 'training step')} every image took part with "
        f"probability {q:.4g}, {seen}; its influence was limited, and random noise was added to "
        "the sum over all images before the model was changed by it. A ledger that detects "
        f"changes was charged for each noised sum ({statement.charges:,} in all) before it was "
        "used, and ε is what an accountant, a published method, makes of that ledger." + search
    )


def covered(statement: Statement) -> list[str]:
    """What ε is about."""
    lines = [
        f"Each training image by itself ({statement.unit_of_privacy}), among "
        f"{statement.num_examples:,}.",
        "The published model, and whatever anybody computes from it.",
    ]
    if statement.search is None:
        lines.append("The model after each step of its training, not only at the end.")
    again = statement.charges - statement.steps
    if again > 0:
        lines.append(f"What a stop or crash cost on top: {count(again, 'noised sum')}.")
    if statement.adaptive_clipping is not None:
        lines.append("The limit on an image's influence, which was found with noise as well.")
    if statement.counts_search:
        lines.append("The search for the configuration, which used the same images.")
    return lines


def not_covered(statement: Statement) -> list[str]:
    """What ε is not about."""
    lines = [
        _test_images(statement),
        "Several images of one person at once: for m of them ε grows to m times its value, and δ "
        "by more than that.",
        "What is true of people in general. The model is meant to learn it, and may tell it of "
        "somebody who is not in the data.",
        "The number of training images, the configuration and the names of classes, which are "
        "taken to be public.",
        "The run's private folder (run key, ledger, losses, norms, batch sizes, times): nobody "
        "else may see it.",
    ]
    if not statement.counts_search:
        lines.append("A choice of this configuration by looking at the same images.")
    return lines


def _test_images(statement: Statement) -> str:
    if statement.test_accuracy_noise is not None:
        hides = "hides each of them with another ε; see the figures."
        if statement.epsilon_of_test_accuracy is None:
            hides = f"hides nothing: {_EXACT}."
        return (
            f"The test images, declared {statement.declared}: ε does not cover them. Accuracy has "
            f"noise of its own, which {hides}"
        )
    told = (
        f"The test images, declared {statement.declared}: {' and '.join(statement.metrics)} are "
        "measured on them without noise."
    )
    if statement.data_evaluation == "public":
        return told
    return (
        f"{told} Whoever knows all of them but one learns from that how good the model is on "
        "that one."
    )


def figures(statement: Statement) -> list[tuple[str, str]]:
    """The statement's numbers, named, for a table."""
    plan: dict[str, Any] = statement.model_dump()
    others = ", ".join(
        f"{name} {_epsilon(value)}" for name, value in statement.epsilon_by_accountant.items()
    )
    rows = [
        ("ε", _epsilon(statement.epsilon)),
        ("δ", f"{statement.delta:g} (1/N = {1 / statement.num_examples:.3g})"),
        ("ε counted by", ACCOUNTANTS[statement.accountant]),
    ]
    if statement.epsilon_with_search is not None:
        total = f"{statement.epsilon_with_search:.4f} at δ = {statement.delta_with_search:g}"
        rows.append(("ε with the search before", total))
    if statement.search is not None:
        found = f"{_epsilon(statement.search.epsilon_of_search)}: {statement.search.how}"
        rows.append(("ε of the search", found))
    if statement.test_accuracy_noise is not None:
        cost = f"none: {_EXACT}"
        if statement.epsilon_of_test_accuracy is not None:
            cost = f"{statement.epsilon_of_test_accuracy:.4f} at δ = {statement.delta:g}"
        noise = f"σ = {statement.test_accuracy_noise:g} right answers"
        published = statement.test_accuracies_published or 1
        noise += "" if published == 1 else f"; all {published} that the run published"
        rows.append(("ε of the test accuracy, for test images", f"{cost} ({noise})"))
    if others:
        rows.append(("ε by each accountant", others))
    return [
        *rows,
        ("unit of privacy", statement.unit_of_privacy),
        ("neighbouring data sets", statement.adjacency),
        ("mechanism", statement.mechanism),
        ("noise σ and bound C", noise_in_words(plan)),
        ("sampling rate q", f"{statement.sample_rate:.5f}"),
        ("expected batch size B̄", f"{statement.expected_batch_size:,}"),
        ("training images N", f"{statement.num_examples:,}"),
        ("steps T", f"{statement.steps:,}"),
        ("noised sums paid for", f"{statement.charges:,}"),
        ("views of an image K", f"{statement.views:,}"),
    ]


def accuracy_in_words(statement: Statement) -> str:
    """How good the model is by its primary metric, and on what that was measured."""
    name, value = next(iter(statement.metrics.items()))
    if name != "test_accuracy":
        known = "no number, or there were none" if value is None else f"{value:.4f}"
        return (
            f"On the test images, which its user declares {statement.declared}, its {name} is "
            f"{known}; ε does not cover them."
        )
    if value is None:
        return "There were no test images, so nothing is known of its accuracy."
    if statement.test_accuracy_noise is not None:
        hides = "that hides each of them"
        if statement.epsilon_of_test_accuracy is None:
            hides = f"that hides nothing, because {_EXACT}"
        return (
            f"The model is right on about {value:.2%} of the test images, which "
            f"its user declares {statement.declared}; the figure has noise {hides}."
        )
    return (
        f"The model is right on {value:.2%} of the test images, which its user "
        f"declares {statement.declared}; ε does not cover them."
    )


def _epsilon(value: float | None) -> str:
    return "none: without noise there is no ε" if value is None else f"{value:.4f}"


def _factor(epsilon: float) -> str:
    factor = math.exp(min(epsilon, 700.0))
    return f"{factor:.3g}" if factor < 1e6 else f"{factor:.1e}"


def _one_in(probability: float) -> str:
    return f"1 in {round(1 / probability):,}"
