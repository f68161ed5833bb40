"""How good predictions are: in all, for each class, in what is confused, and in their confidence.

All of it follows from three numbers of each example: its label, the class with the largest logit,
and that class's probability. So test sets with many classes need little memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

CALIBRATION_BINS = 15
"""As in Guo et al. 2017, so that figures can be compared."""

_CONFUSIONS = 5


def quality(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float64],
    num_classes: int,
) -> dict[str, Any]:
    """All figures as plain values; what cannot be told is None.

    Args:
        labels: [N] true classes, from 0 to num_classes - 1; N is at least 1.
        predicted: [N] classes with the largest logit.
        confidence: [N] probabilities of the predicted classes; NaN where a logit is none.
        num_classes: also those without an example count.

    Returns:
        ``test_accuracy`` with ``interval_95``, ``mean_confidence``, ``calibration_error``, and
        ``per_class``, ``largest_confusions`` and ``confusion_matrix`` (a row for each true class,
        a column for each predicted one).
    """
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    matrix = pairs.reshape(num_classes, num_classes)
    known = bool(np.isfinite(confidence).all())
    return {
        "test_accuracy": int(np.trace(matrix)) / len(labels),
        "interval_95": wilson_interval(int(np.trace(matrix)), len(labels)),
        "test_examples": len(labels),
        "mean_confidence": float(confidence.mean()) if known else None,
        "calibration_error": calibration_error(predicted == labels, confidence) if known else None,
        "per_class": per_class(matrix),
        "largest_confusions": largest_confusions(matrix),
        "confusion_matrix": matrix.tolist(),
    }


def wilson_interval(right: int, examples: int) -> list[float] | None:
    """Low and high end of the 95% confidence interval of a share (Wilson 1927)."""
    if examples == 0:
        return None
    interval = binomtest(right, examples).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def calibration_error(right: NDArray[np.bool_], confidence: NDArray[np.float64]) -> float:
    """Expected calibration error: how far confidence is from accuracy, from 0 to 1.

    Examples are put into 15 bins of equal width by their confidence, and |accuracy - mean
    confidence| of a bin counts by its share of the examples (Guo et al. 2017, arXiv 1706.04599,
    eq. 3; bin m is ((m - 1)/15, m/15]). With few examples chance alone makes it larger.

    Args:
        right: [N] whether the predicted class is the label.
        confidence: [N] probability of the predicted class.
    """
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.digitize(confidence, inner_edges, right=True)
    # A bin's share n/N times its gap |Σ right/n - Σ confidence/n|: n cancels.
    gaps = np.bincount(bins, weights=right - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def per_class(matrix: NDArray[np.int64]) -> list[dict[str, Any]]:
    """For each class its test examples, and the share of them that is right, with its interval.

    Args:
        matrix: [classes, classes] examples by true and predicted class.
    """
    return [
        {
            "class": label,
            "examples": examples,
            "accuracy": right / examples if examples else None,
            "interval_95": wilson_interval(right, examples),
        }
        for label, (right, examples) in enumerate(
            zip(matrix.diagonal().tolist(), matrix.sum(axis=1).tolist(), strict=True)
        )
    ]


def largest_confusions(matrix: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The up to five pairs of a true and another predicted class with most examples, most first.

    Args:
        matrix: [classes, classes] examples by true and predicted class.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        {
            "true": int(true),
            "predicted": int(predicted),
            "examples": int(wrong[true, predicted]),
            "share_of_class": float(wrong[true, predicted] / matrix[true].sum()),
        }
        for true, predicted in pairs
        if wrong[true, predicted]
    ]
