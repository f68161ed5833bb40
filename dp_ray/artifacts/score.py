"""What privacy.json says of the test split: exact figures, or an accuracy with noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from dp_ray.config.run import Config
from dp_ray.errors import ConfigError
from dp_ray.keys import KeyedStream, RunKey
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.objectives.single_label import METRICS
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.plan import PrivacyPlan

PUBLIC = (
    "The test split is public, as its user declares (data_evaluation): its figures are exact, and "
    "ε does not cover it."
)
EXACT = (
    "The test split is held out, as its user declares (data_evaluation), and ε does not cover it: "
    "{metrics} are exact. Whoever knows all test images but one learns from them "
    "whether the model is right on that one, and how sure it is."
)
NOISED = (
    "The test split is held out, as its user declares (data_evaluation): test_accuracy has "
    "Gaussian noise on the number of right answers, which one test image moves by 1 at most. For "
    "each test image it is private by epsilon_of_test_accuracy at the same delta. The number of "
    "test images is public. Exact figures, and those of other steps, are not published."
)


def assumption(config: Config, metrics: Sequence[str] = tuple(METRICS)) -> str:
    """What a statement says of the test split, and of metrics of these names."""
    if config.data.evaluation == "public":
        return PUBLIC
    return (
        EXACT.format(metrics=_listed(metrics)) if config.data.evaluation_noise is None else NOISED
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def check_noise(config: Config) -> None:
    """Refuse noise on a number of right answers that the objective does not count.

    Raises:
        ConfigError: ``data.evaluation_noise`` is set for another objective.
    """
    if config.data.evaluation_noise is not None and config.objective.name != "single_label":
        raise ConfigError(
            "data.evaluation_noise",
            config.data.evaluation_noise,
            "it hides the number of right answers, and objective.name = "
            f"{config.objective.name!r} counts none",
            "Set it to null",
        )


def published_score(
    config: Config,
    plan: PrivacyPlan,
    evaluation: Evaluation | None,
    metrics: dict[str, float | None],
    *,
    key: RunKey,
    model: bytes,
    test_digest: str,
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
    """
    noise = config.data.evaluation_noise
    said = {"test_accuracy_noise": noise, "epsilon_of_test_accuracy": None}
    if noise is None or evaluation is None:
        return {**metrics, **said}
    right = round(evaluation.metrics["test_accuracy"] * evaluation.examples)
    address = (
        f"{hashlib.sha256(model).hexdigest()} {right} of {evaluation.examples} of {test_digest} "
        f"with {noise!r}"
    )
    secret = key.derive(f"noise of the published accuracy of {address}")
    drawn = float(KeyedStream(secret, incarnation=0, step=0).normal(1)[0])
    # Rounded, so that the low bits of the sum tell nothing of the count.
    noised = round((right + noise * drawn) / evaluation.examples, 6)
    epsilon = epsilon_of(plan.accountant, ((noise, 1.0, 1),), plan.delta)
    return {
        **dict.fromkeys(metrics),
        "test_accuracy": min(max(noised, 0.0), 1.0),
        "test_accuracy_noise": noise,
        "epsilon_of_test_accuracy": epsilon,
    }
