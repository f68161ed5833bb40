"""Predictions that are of no use, whatever their accuracy looks like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dp_ray.errors import printable

_SHOWN = 5


def useless_predictions(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], *, right: int, names: Sequence[str]
) -> list[str]:
    """Return what is wrong with the predictions of a test split, each in one line.

    They are exact figures of the test split, as a confusion matrix is.

    Args:
        labels: [classes] test examples of each class.
        predicted: [classes] examples that were predicted as each class.
        right: examples that were predicted as their own class.
        names: of the classes by label; empty if they have none.

    Returns:
        One or more of: only one class is predicted; classes with examples are never predicted; the
        most frequent class is right as often. Nothing where all examples are of one class.
    """
    present = np.flatnonzero(labels)
    if len(present) < 2:
        return []
    found, (only, *others) = [], np.flatnonzero(predicted).tolist()
    if not others:
        found.append(f"{class_label(names, only)} is predicted for every test image")
    elif len(missing := np.setdiff1d(present, [only, *others]).tolist()):
        shown = ", ".join(class_label(names, label) for label in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        found.append(f"no test image is predicted as {shown}{more}")
    most = int(labels.argmax())
    if right <= labels[most]:
        examples = labels.sum()
        found.append(
            f"accuracy {right / examples:.4f} is no better than {labels[most] / examples:.4f}, "
            f"which {class_label(names, most)} as the answer to every test image would have"
        )
    return found


def class_label(names: Sequence[str], label: int) -> str:
    """Return how a message calls a class: by its name without control characters, or its number."""
    if not names:
        return f"class {label}"
    return printable(names[label])
