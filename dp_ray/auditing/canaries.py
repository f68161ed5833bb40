"""Canaries: examples that an audit puts into the training data, each by a fair coin.

They take the place of as many examples, so that N, q and the plan stay what they are: whether one
is in or out is one example more or less, which is the adjacency that ε speaks of.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dp_ray.data.store import Dataset, Examples
from dp_ray.keys import KeyedStream, RunKey

CanaryKind = Literal["gradient", "mislabelled"]


@dataclass(frozen=True, repr=False)
class Canaries:
    """The m canaries of one run.

    Attributes:
        kind: ``mislabelled``: an example with a wrong label. ``gradient``: an example with a
            label that no class has, of which the loss is made up (:mod:`dp_ray.auditing.planted`).
        replaced: [m] ids of the examples whose place they take, ascending.
        included: [m] the coins: who is in the data. Secret until the scores are there.
        choice_key: 32 bytes that wrong labels and directions are drawn with; the attack knows it.
    """

    kind: CanaryKind
    replaced: NDArray[np.int64]
    included: NDArray[np.bool_]
    choice_key: bytes

    @classmethod
    def draw(
        cls, kind: CanaryKind, count: int, num_examples: int, *, key: RunKey, run: int = 0
    ) -> Canaries:
        """Draws places, coins and choices, each with a key of its own.

        Args:
            kind: see above.
            count: m.
            num_examples: N, at least m.
            key: the audit's secret, which is not that of a run.
            run: which run of the audit.
        """
        address = {"incarnation": 0, "step": run}
        places = KeyedStream(key.derive("canaries"), **address)
        order = np.argsort(places.words(np.arange(num_examples, dtype=np.uint64), 1)[:, 0])
        coins = KeyedStream(key.derive("coins"), **address)
        included = coins.words(np.arange(count, dtype=np.uint64), 1)[:, 0] >> np.uint64(63)
        choice_key = key.derive(f"canaries of run {run}")
        return cls(kind, np.sort(order[:count]), included.astype(bool), choice_key)

    def choices(self, count: int) -> NDArray[np.uint64]:
        """``count`` words of 64 bits, the same each time."""
        stream = KeyedStream(self.choice_key, incarnation=0, step=0)
        return stream.words(np.arange(count, dtype=np.uint64), 1)[:, 0]

    def wrong_labels(self, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
        """For the [m] labels of the replaced examples as many others, drawn evenly."""
        shift = 1 + self.choices(len(labels)) % np.uint64(num_classes - 1)
        return (labels + shift.astype(np.int64)) % num_classes

    def rows(self, num_examples: int) -> NDArray[np.int64]:
        """[n] ids, of N, of the examples and canaries that are in the data, ascending."""
        here = np.ones(num_examples, dtype=bool)
        here[self.replaced] = self.included
        return np.flatnonzero(here)

    def digest(self) -> str:
        """Of all that decides what the data becomes."""
        parts = (self.kind.encode(), self.replaced.tobytes(), self.included.tobytes())
        return hashlib.sha256(b"".join((*parts, self.choice_key))).hexdigest()


@dataclass(frozen=True)
class PlantedSplit:
    """The examples that are left, and the canaries whose coins fell so.

    Attributes:
        base: the examples as they were.
        rows: [n] ids in ``base`` of those that are here.
        labels: [n].
    """

    base: Examples
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """See :class:`~dp_ray.data.store.Examples`."""
        images, _ = self.base.read(self.rows[ids])
        return images, self.labels[ids]


def plant(dataset: Dataset, canaries: Canaries) -> Dataset:
    """The data set that an audited run trains on; copies no image.

    Args:
        dataset: as it was loaded.
        canaries: what is put in.

    Returns:
        The data set, with a digest of its own, so that keys bound to it are new.
    """
    labels = np.array(dataset.train.labels)
    num_classes = dataset.facts.num_classes
    if canaries.kind == "mislabelled":
        true = labels[canaries.replaced]
        labels[canaries.replaced] = canaries.wrong_labels(true, num_classes)
    else:
        labels[canaries.replaced] = num_classes + np.arange(len(canaries.replaced))
    rows = canaries.rows(len(labels))
    split = PlantedSplit(dataset.train, rows, labels[rows])
    digest = hashlib.sha256(f"{dataset.digest} {canaries.digest()}".encode()).hexdigest()
    return replace(dataset, train=split, digest=digest)
