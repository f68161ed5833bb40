"""What privacy.json says of the test split: exact figures, or an accuracy with noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from dp_ray.artifacts.statement import Statement
from dp_ray.config.run import Config
from dp_ray.errors import ConfigError, RunError
from dp_ray.keys import KeyedStream, RunKey
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.objectives.single_label import METRICS
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.history import History
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.storage import Folder

PUBLIC = (
    "The test split is public, as its user declares (data_evaluation): its figures are exact, and "
    "ε does not cover it."
)
EXACT = (
    "The test split is held out, as its user declares (data_evaluation), and ε does not cover it: "
    "{metrics} are exact. Whoever knows all test images but one learns from them "
    "how good the model is on that one."
)
NOISED = (
    "The test split is held out, as its user declares (data_evaluation): test_accuracy has "
    "Gaussian noise on the number of right answers, which one test image moves by 1 at most. For "
    "each test image epsilon_of_test_accuracy, at the same delta, covers all accuracies that this "
    "run published (test_accuracies_published), and nothing else: accuracies of other models on "
    "the same images cost more, and what dp-ray evaluate, result.json and the terminal show is "
    "exact. Where it is null, one of them was exact, or may have been, and the noise hides "
    "nothing. The number of test images is public."
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
        charge: enters the name and σ of a figure into the run's ledger, see
            :meth:`~dp_ray.ledger.ledger.Ledger.charge_score`.
    """
    noise = config.data.evaluation_noise
    said = {
        "test_accuracy_noise": noise,
        "test_accuracies_published": None,
        "epsilon_of_test_accuracy": None,
    }
    if evaluation is None:
        return {**metrics, **said}
    right = _right_answers(config, evaluation)
    address = (
        f"{hashlib.sha256(model).hexdigest()} {evaluation.metrics if right is None else right} of "
        f"{evaluation.examples} of {test_digest} with {noise!r}"
    )
    # An exact one is charged as well: a noised one of a later release cannot hide it, whatever the
    # test split is declared to be now.
    published = charge(key.derive(f"name of the published accuracy of {address}").hex(), noise or 0)
    if noise is None or right is None:  # noise is refused where no answers are counted
        return {**metrics, **said}
    secret = key.derive(f"noise of the published accuracy of {address}")
    # Of one version in all runs: a release that is repeated has the same accuracy.
    drawn = float(KeyedStream(secret, incarnation=0, step=0, version=1).normal(1)[0])
    # Rounded, so that the low bits of the sum tell nothing of the count.
    noised = round((right + noise * drawn) / evaluation.examples, 6)
    epsilon = epsilon_of(plan.accountant, published, plan.delta)
    return {
        **dict.fromkeys(metrics),
        **said,
        "test_accuracy": min(max(noised, 0.0), 1.0),
        "test_accuracies_published": sum(count for _, _, count in published),
        "epsilon_of_test_accuracy": epsilon if math.isfinite(epsilon) else None,
    }


def _right_answers(config: Config, evaluation: Evaluation) -> int | None:
    """Return how many answers are right; None of an objective that counts none."""
    if config.objective.name != "single_label":  # its test_accuracy may be anything, or no number
        return None
    return round(evaluation.metrics["test_accuracy"] * evaluation.examples)


def published_before(release: Folder) -> float | None:
    """Return σ of the accuracy in a release folder: 0 of an exact one, None if there is none.

    Earlier versions published one without a charge in the ledger.

    Args:
        release: of the run; one that is damaged may have held an exact accuracy.
    """
    if not release.exists(Statement.FILE):
        return None
    try:
        statement = Statement.read(release)
    except RunError:
        return 0.0
    told = any(value is not None for value in statement.metrics.values())
    return (statement.test_accuracy_noise or 0.0) if told else None
