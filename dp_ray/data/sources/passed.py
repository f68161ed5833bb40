"""Data that was passed to ``dp_ray.train`` as Python objects.

Each of the training and the test split is a map-style data set of (image, label) pairs, a pair of
arrays or tensors, or a Hugging Face data set. It is decoded into the same memory-mapped copy as any
other data, and identified by its content alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dp_ray.config.data import DataConfig
from dp_ray.config.section import OBJECT
from dp_ray.data.pictures import on_background, pixels_of
from dp_ray.data.source import Source
from dp_ray.data.sources.own import Own, call_users, checked_arrays
from dp_ray.data.splits import ArraySplit, Notes, Piece, Split, Splits
from dp_ray.errors import DataError

_AT_ONCE = 512
_DEEP_MODES = ("I", "F")
_WHOLE = 1e-3
"""How far a float image times 255 may be from whole numbers: float32 rounds by less."""


class Passed(Own):
    """The object that was passed: a pair of splits, a source, or a function of the data section."""

    decoding_fields: ClassVar[frozenset[str]] = frozenset({"background"})

    def stamp(self) -> str | None:
        """Return None: two objects may give the same text, so the content decides."""
        return None

    def _make(self) -> Any:
        what = "the data was passed as Python objects"
        passed = self.config.object_passed_as("data", what, "(train, test)")
        if isinstance(passed, Source) or not callable(passed):
            return passed
        return call_users(self.config, "load(config)", lambda: passed(self.config))

    def _splits_of(self, made: Any) -> Splits:
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise self._refusal(
                f"data must be a pair (train, test), not {type(made).__name__}; test may be None"
            )
        train, test = made
        return self._split(train, "train"), self._split(test, "test")

    def _split(self, part: Any, name: str) -> Split:
        if part is None:
            facts = self.facts()
            return ArraySplit(np.zeros((0, *facts.shape), np.uint8), np.zeros(0, np.int64))
        if isinstance(part, tuple | list) and len(part) == 2 and hasattr(part[0], "shape"):
            images, labels = part
            grey = self.facts().channels == 1 and len(images.shape) == 3
            images = images[:, None] if grey else images
            return ArraySplit(*checked_arrays(self.config, name, images, labels))
        if hasattr(part, "batch_sampler"):
            raise self._refusal(
                f"{name} is a {type(part).__name__}, whose batches dp-ray draws itself: pass its "
                ".dataset"
            )
        if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
            raise self._refusal(
                f"{name} is of type {type(part).__name__}: give a data set with __len__ and "
                "__getitem__, a pair of arrays (images, labels), or a Hugging Face data set"
            )
        columns = _columns(part, self._refusal)
        facts = self.facts()
        return _Items(self.config, name, part, columns, (facts.channels, facts.image_size))


@dataclass
class _Items:
    """A map-style data set, whose items are made arrays."""

    config: DataConfig
    name: str
    items: Any
    columns: tuple[str, str] | None
    shape: tuple[int, int]
    digest: str | None = None
    notes: Notes = field(default_factory=Notes)

    def __post_init__(self) -> None:
        self.notes.classes = _class_names(self.items, self.columns)

    def __len__(self) -> int:
        return call_users(self.config, f"len() of {self.name}", lambda: len(self.items))

    def pieces(self) -> Iterator[Piece]:
        """See :class:`~dp_ray.data.splits.Split`."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _AT_ONCE):
            found = [self._item(i) for i in range(start, min(start + _AT_ONCE, len(self)))]
            images = np.stack([image for image, _ in found])
            labels = [label for _, label in found]
            piece = checked_arrays(self.config, self.name, images, labels)
            digest.update(piece[0].tobytes() + piece[1].tobytes())
            yield piece
        before, self.digest = self.digest, digest.hexdigest()
        if before not in (None, self.digest):
            raise DataError(
                f"data.name = {OBJECT!r}: {self.name} gives other items when it is read again: "
                "remove its random transforms, and set augment (augment.views, …), which draws "
                "views anew in each step"
            )

    def _item(self, index: int) -> tuple[NDArray[np.uint8], Any]:
        item = call_users(self.config, f"{self.name}[{index}]", lambda: self.items[index])
        try:
            if self.columns is None:
                image, label = item
            else:
                image, label = (item[column] for column in self.columns)
        except (TypeError, ValueError, LookupError):
            raise self._refusal(index, "is no pair (image, label)") from None
        channels, size = self.shape
        pixels = _pixels(image, self.config, channels, size)
        if isinstance(pixels, str):
            raise self._refusal(index, pixels)
        return pixels, np.asarray(label)

    def _refusal(self, index: int, problem: str) -> DataError:
        return DataError(
            f"data.name = {OBJECT!r}: {self.name}[{index}] {problem}",
            shared=f"data.name = {OBJECT!r}: an item of {self.name} {problem}",
        )


def _pixels(image: Any, config: DataConfig, channels: int, size: int) -> NDArray[np.uint8] | str:
    """An image as [C, S, S] uint8, or what is wrong with it."""
    if hasattr(image, "convert") and hasattr(image, "mode"):  # Pillow's
        if image.mode.partition(";")[0] in _DEEP_MODES:
            return (
                f"is a picture of more than 8 bits (mode {image.mode}): bring it to mode L or RGB"
            )
        if image.has_transparency_data:
            image = on_background(image, config.background)
        return pixels_of(image, channels=channels, image_size=size)
    array = np.asarray(image)
    wanted = (channels, size, size)
    if array.ndim == 2:
        array = array[None]
    if array.shape == (size, size, channels) and array.shape != wanted:
        array = array.transpose(2, 0, 1)
    if array.shape != wanted:
        return (
            f"is an image of shape {array.shape}, and data.channels and data.image_size say "
            f"{wanted}: resize it, or set them"
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f":
        scaled = array * 255.0
        whole = np.rint(scaled)
        if np.all(np.abs(scaled - whole) <= _WHOLE) and whole.min() >= 0 and whole.max() <= 255:
            return whole.astype(np.uint8)
        return (
            "is an image of floats other than whole 255ths from 0 to 1: leave out what normalises "
            "it, and set data.mean and data.std instead"
        )
    return f"is an image of {array.dtype}: give uint8, from 0 to 255"


_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels")


def _columns(part: Any, refusal: Callable[[str], DataError]) -> tuple[str, str] | None:
    """Names of the image and the label column of a Hugging Face data set; None of any other."""
    features = getattr(part, "features", None)
    if not isinstance(features, Mapping):
        return None
    image = _column(features, "Image", _IMAGE_COLUMNS)
    label = _column(features, "ClassLabel", _LABEL_COLUMNS)
    if image is None or label is None:
        missing = "image" if image is None else "label"
        raise refusal(
            f"no {missing} column can be told among {', '.join(map(str, features))}: name one "
            f"{missing} with rename_column"
        )
    return image, label


def _column(features: Mapping[str, Any], kind: str, names: Sequence[str]) -> str | None:
    found = [name for name in names if name in features]
    typed = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(found) == 1:
        return found[0]
    return typed[0] if len(typed) == 1 else None


def _class_names(part: Any, columns: tuple[str, str] | None) -> list[str]:
    if columns is not None:
        return list(getattr(part.features[columns[1]], "names", None) or [])
    names = getattr(part, "classes", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else []
