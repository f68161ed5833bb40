"""Made-up images of any number and size, to measure speed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dp_ray.config.data import DataConfig
from dp_ray.data.source import DataFacts, Source, given_facts
from dp_ray.data.splits import Notes, Piece, Splits, slices

_DEFAULTS = {"num_examples": 10_000, "num_classes": 10, "image_size": 32, "channels": 3}


class Fake(Source):
    """Uniform noise; the test split has a fifth as many images as the training split."""

    self_contained = True

    def __init__(self, config: DataConfig) -> None:
        left_out = {n: value for n, value in _DEFAULTS.items() if getattr(config, n) is None}
        super().__init__(config.model_copy(update=left_out))

    def facts(self) -> DataFacts:
        """See :class:`~dp_ray.data.source.Source`."""
        return given_facts(self.config)

    def stamp(self) -> str:
        """See :class:`~dp_ray.data.source.Source`."""
        return "fake 2"

    def splits(self) -> Splits:
        """See :class:`~dp_ray.data.source.Source`."""
        facts = self.facts()
        count = facts.num_examples
        return _FakeSplit(facts, count), _FakeSplit(facts, max(count // 5, 1))


@dataclass(frozen=True)
class _FakeSplit:
    """Uniform noise, the same whenever it is walked through."""

    facts: DataFacts
    num_examples: int
    notes: Notes = field(default_factory=Notes)

    def __len__(self) -> int:
        return self.num_examples

    def pieces(self) -> Iterator[Piece]:
        """See :class:`~dp_ray.data.splits.Split`."""
        generator = np.random.default_rng(self.num_examples)
        shape = self.facts.shape
        for part in slices(self.num_examples, shape):
            count = part.stop - part.start
            images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
            yield images, generator.integers(0, self.facts.num_classes, count)
