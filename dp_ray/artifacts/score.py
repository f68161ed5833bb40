"""What privacy.json says of the test split: exact figures, or an accuracy with noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

from dp_ray.config.run import Config
from dp_ray.keys import KeyedStream, RunKey
from dp_ray.objectives.evaluation import METRIC_NAMES, Evaluation
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.history import History
from dp_ray.privacy.plan import PrivacyPlan

PUBLIC = (
    "The test split is public, as its user declares (data_evaluation): its figures are exact, and "
    "ε does not cover it."
)
EXACT = (
    "The test split is held out, as its user declares (data_evaluation), and ε does not cover it: "
    "test_accuracy and test_loss are exact. Whoever knows all test images but one learns from them "
    "whether the model is right on that one, and how sure it is."
)
NOISED = (
    "The test split is held out, as its user declares (data_evaluation): test_accuracy has "
    "Gaussian noise on the number of right answers, which one test image moves by 1 at most. For "
    "each test image epsilon_of_test_accuracy, at the same delta, covers all accuracies that this "
    "run published (test_accuracies_published), and nothing else: accuracies of other models on "
    "the same images cost more, and what dp-ray evaluate, result.json and the terminal show is "
    "exact. The number of test images is public."
)


def assumption(config: Config) -> str:
    """What a statement says of the test split."""
    if config.data.evaluation == "public":
        return PUBLIC
    return EXACT if config.data.evaluation_noise is None else NOISED


def published_score(
    config: Config,
    plan: PrivacyPlan,
    evaluation: Evaluation | None,
    metrics: dict[str, float | None],
    *,
    key: RunKey,
    model: bytes,
    test_digest: str,
    charge: Callable[[str, float], History],
) -> dict[str, Any]:
    """The figures of the test split for a statement.

    Args:
        config: says whether there is noise.
        plan: δ and the accountant.
        evaluation: of what is released; None without test examples.
        metrics: the same by their names, exact.
        key: the run's secret.
        model: the released file.
        test_digest: digest of the test split. Another model, split, count or σ has noise of its
            own, and the same release repeated has the same noise.
        charge: :meth:`~dp_ray.ledger.ledger.Ledger.charge_score` of the run.
    """
    noise = config.data.evaluation_noise
    said = {
        "test_accuracy_noise": noise,
        "test_accuracies_published": None,
        "epsilon_of_test_accuracy": None,
    }
    if evaluation is None or config.data.evaluation == "public":
        return {**metrics, **said}
    right = round(evaluation.accuracy * evaluation.examples)
    address = (
        f"{hashlib.sha256(model).hexdigest()} {right} of {evaluation.examples} of {test_digest} "
        f"with {noise!r}"
    )
    # An exact one is charged as well: a noised one of a later release cannot hide it.
    published = charge(key.derive(f"name of the published accuracy of {address}").hex(), noise or 0)
    if noise is None:
        return {**metrics, **said}
    secret = key.derive(f"noise of the published accuracy of {address}")
    drawn = float(KeyedStream(secret, incarnation=0, step=0).normal(1)[0])
    # Rounded, so that the low bits of the sum tell nothing of the count.
    noised = round((right + noise * drawn) / evaluation.examples, 6)
    epsilon = epsilon_of(plan.accountant, published, plan.delta)
    return {
        **dict.fromkeys(METRIC_NAMES),
        **said,
        "test_accuracy": min(max(noised, 0.0), 1.0),
        "test_accuracies_published": sum(count for _, _, count in published),
        "epsilon_of_test_accuracy": epsilon if math.isfinite(epsilon) else None,
    }
