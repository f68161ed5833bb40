"""A split of a data set as every reader returns it, and notes on how it was read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Piece = tuple[NDArray[np.uint8], NDArray[Any]]
"""Images [n, C, H, W] and labels [n, …]."""


@dataclass
class Notes:
    """What a reader noticed of one split. Private, as the data is.

    Attributes:
        classes: names by label; empty where labels have no names.
        skipped: files and folders that are no examples, by reason.
        kinds: pictures by format and mode, such as ``JPEG RGB``.
        turned: pictures that EXIF turns or mirrors.
        transparent: pictures with transparent parts.
        managed: pictures whose colour profile is not sRGB.
        smallest: least width and least height in pixels, before resizing.
        largest: greatest width and greatest height.
    """

    classes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    turned: int = 0
    transparent: int = 0
    managed: int = 0
    smallest: list[int] = field(default_factory=list)
    largest: list[int] = field(default_factory=list)

    def dump(self) -> dict[str, Any]:
        """Return plain values, from which ``Notes(**values)`` is made again."""
        return asdict(self)


def added_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add counts by reason, such as those of both splits."""
    total = Counter[str]()
    for part in counts:
        total.update(part)
    return dict(total)


@runtime_checkable
class Split(Protocol):
    """Images and labels that are read in order, in pieces, each time from the beginning."""

    @property
    def notes(self) -> Notes:
        """What was noticed; whole once the pieces were walked through."""
        ...

    def __len__(self) -> int: ...

    def pieces(self) -> Iterator[Piece]:
        """Consecutive ([n, C, H, W] uint8, [n, …]) pairs; len() examples in all.

        The digest of the data depends on where it is cut, so the pieces are the same each time.
        """
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split that is in memory already: images [N, C, H, W] uint8, labels [N, …]."""

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    notes: Notes = field(default_factory=Notes)

    def __len__(self) -> int:
        return len(self.labels)

    def pieces(self) -> Iterator[Piece]:
        """See :class:`Split`."""
        for start in range(0, len(self), 4096):
            part = slice(start, start + 4096)
            yield self.images[part], self.labels[part]


Splits = tuple[Split, Split]
"""Training and test split."""


def slices(num_examples: int, shape: tuple[int, ...]) -> Iterator[slice]:
    """Consecutive examples, as many at a time as 64 MiB hold."""
    size = max(2**26 // math.prod(shape), 1)
    for start in range(0, num_examples, size):
        yield slice(start, min(start + size, num_examples))
