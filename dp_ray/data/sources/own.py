"""A user's own data, named by an import path: a source, or a function that returns arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dp_ray.config.data import DataConfig
from dp_ray.data.source import DataFacts, Source, Unread, given_facts
from dp_ray.data.splits import ArraySplit, Notes, Piece, Split, Splits
from dp_ray.errors import ConfigError, DataError
from dp_ray.imports import USER_ERRORS, cause_of, import_object

_T = TypeVar("_T")


class Own(Source):
    """What the callable at ``data.name`` returns for the data section.

    That is a :class:`~dp_ray.data.source.Source`, or the arrays ``((train_images, train_labels),
    (test_images, test_labels))``. Nothing of the user's is imported before the data is asked for,
    so facts are always those of the configuration: a plan is made, and a release is read, where the
    user's code is not.
    """

    def facts(self) -> DataFacts:
        """See :class:`~dp_ray.data.source.Source`."""
        return given_facts(self.config)

    def stamp(self) -> str | None:
        """See :class:`~dp_ray.data.source.Source`."""
        source = self._made
        if not isinstance(source, Source):
            return None
        stamp = call_users(self.config, "stamp()", source.stamp)
        if stamp is None or isinstance(stamp, str):
            return stamp
        raise self._refusal(f"stamp() must return a text or None, not {type(stamp).__name__}")

    def splits(self) -> Splits:
        """See :class:`~dp_ray.data.source.Source`."""
        source = self._made
        if not isinstance(source, Source):
            return self._splits_of(source)
        splits = call_users(self.config, "splits()", source.splits)
        try:
            train, test = splits
        except (TypeError, ValueError):
            raise self._refusal("splits() must return the training and the test split") from None
        for split in (train, test):
            if not isinstance(split, Split):
                raise self._refusal(
                    f"splits() returned an object of type {type(split).__name__}, and no split: it "
                    "needs notes, __len__() and pieces()"
                )
        return _OwnSplit(self.config, "train", train), _OwnSplit(self.config, "test", test)

    def unread(self) -> Unread:
        """See :class:`~dp_ray.data.source.Source`."""
        source = self._made
        return (
            call_users(self.config, "unread()", source.unread)
            if isinstance(source, Source)
            else Unread()
        )

    @cached_property
    def _made(self) -> Any:
        """What the user's callable returned; called once, since it may have read all data."""
        made = self._make()
        if isinstance(made, Source):
            self._check_facts(call_users(self.config, "facts()", made.facts))
        return made

    def _make(self) -> Any:
        config = self.config
        make = import_object(config.name, "data.name")
        if not callable(make):
            raise ConfigError(
                "data.name", config.name, "is no function", "Name one that loads data"
            )
        return call_users(config, "load(config)", lambda: make(config))

    def _splits_of(self, made: Any) -> Splits:
        """The splits of what is no source."""
        return _split_arrays(self.config, made)

    def _check_facts(self, stated: Any) -> None:
        if not isinstance(stated, DataFacts):
            raise self._refusal(f"facts() must return DataFacts, not {type(stated).__name__}")
        given = self.facts()
        for name in (found.name for found in fields(DataFacts)):
            if not np.array_equal(getattr(stated, name), getattr(given, name)):
                raise ConfigError(
                    f"data.{name}",
                    getattr(self.config, name),
                    f"the source has {getattr(stated, name)}",
                    "Make them agree: a release is read by the facts of the configuration",
                )

    def _refusal(self, problem: str) -> DataError:
        return DataError(f"data.name = {self.config.name!r}: {problem}")


@dataclass(frozen=True)
class _OwnSplit:
    """A split of the user's, whose mistakes become errors of one line."""

    config: DataConfig
    name: str
    split: Split

    @property
    def notes(self) -> Notes:
        """See :class:`~dp_ray.data.splits.Split`."""
        return self.split.notes

    def __len__(self) -> int:
        return call_users(self.config, f"len() of {self.name}", self.split.__len__)

    def pieces(self) -> Iterator[Piece]:
        """See :class:`~dp_ray.data.splits.Split`."""
        what = f"pieces() of {self.name}"
        pieces = call_users(self.config, what, lambda: iter(self.split.pieces()))
        while (piece := call_users(self.config, what, lambda: next(pieces, None))) is not None:
            try:
                images, labels = piece
            except (TypeError, ValueError):
                raise DataError(
                    f"data.name = {self.config.name!r}: {what} must yield (images, labels)"
                ) from None
            yield checked_arrays(self.config, self.name, images, labels)


def call_users(config: DataConfig, what: str, function: Callable[[], _T]) -> _T:
    """Call a user's function.

    Raises:
        DataError: it failed; the message says where.
        ConfigError: it refused the configuration.
    """
    try:
        return function()
    except (ConfigError, DataError):
        raise
    except USER_ERRORS as error:
        problem = f"data.name = {config.name!r}: {what} failed"
        raise DataError(
            f"{problem}: {cause_of(error)}", shared=f"{problem}: {type(error).__name__}"
        ) from error


def _split_arrays(config: DataConfig, splits: Any) -> Splits:
    try:
        (train_images, train_labels), (test_images, test_labels) = splits
    except (TypeError, ValueError):
        raise DataError(
            f"data.name = {config.name!r}: the loader must return "
            "((train_images, train_labels), (test_images, test_labels)), or a Source"
        ) from None
    train = ArraySplit(*checked_arrays(config, "train", train_images, train_labels))
    return train, ArraySplit(*checked_arrays(config, "test", test_images, test_labels))


def checked_arrays(config: DataConfig, split: str, images: Any, labels: Any) -> Piece:
    """Images [n, …] and labels [n, …] as arrays; see :data:`Piece`."""
    numbers = _array(labels, config, f"{split} labels")
    pixels = _array(images, config, f"{split} images")
    if pixels.size and pixels.ndim != 4:
        raise DataError(
            f"data.name = {config.name!r}: {split} images must be one array of shape "
            f"[N, C, H, W], not of shape {pixels.shape}"
        )
    if numbers.ndim == 0:
        raise DataError(
            f"data.name = {config.name!r}: {split} labels are a single number: return one for each "
            "image, whole numbers for classes"
        )
    if len(pixels) != len(numbers):
        raise DataError(
            f"data.name = {config.name!r}: {len(pixels)} {split} images and "
            f"{len(numbers)} labels: give one label an image"
        )
    return pixels, numbers


def _array(values: Any, config: DataConfig, what: str) -> NDArray[Any]:
    """What a loader returned as one array; an image of another shape than the others makes none."""
    try:
        array: NDArray[Any] = np.asanyarray(values)
        if array.dtype != object:
            return array
        problem = f"hold {type(values).__name__}"
        if isinstance(values, list | tuple) and values:
            problem = f"hold objects of type {type(values[0]).__name__}"
    except USER_ERRORS as error:
        problem = f"are of different shapes ({cause_of(error)})"
    raise DataError(
        f"data.name = {config.name!r}: {what} {problem}, and no numbers of one shape: return one "
        "array, images as uint8 [N, C, H, W] and labels as whole numbers [N]"
    )
