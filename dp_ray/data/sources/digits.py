"""The 1797 digits of 8 × 8 pixels that come with scikit-learn."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from dp_ray.data.source import DataFacts, Source, known_facts
from dp_ray.data.splits import ArraySplit, Splits
from dp_ray.extras import require

_FACTS = DataFacts(1437, 10, 8, 1, (0.3,), (0.37,))


class Digits(Source):
    """Four fifths to train on, the rest to test on, each class in equal shares."""

    self_contained = True

    def facts(self) -> DataFacts:
        """See :class:`~dp_ray.data.source.Source`."""
        return known_facts(self.config, _FACTS)

    def check_place(self) -> None:
        """See :class:`~dp_ray.data.source.Source`."""
        require("digits", "data.name = 'digits'", "choose another data set")

    def stamp(self) -> str:
        """See :class:`~dp_ray.data.source.Source`."""
        self.check_place()
        return f"scikit-learn {version('scikit-learn')}"

    def splits(self) -> Splits:
        """See :class:`~dp_ray.data.source.Source`."""
        self.check_place()
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = digits.target.astype(np.int64)
        train, test = train_test_split(
            np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
        )
        train.sort(), test.sort()
        return ArraySplit(images[train], labels[train]), ArraySplit(images[test], labels[test])
