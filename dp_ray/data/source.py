"""Where examples come from: the seam that a new kind of data plugs into.

A source is one class in one file of ``dp_ray/data/sources/`` and one line of its registry, or a
class of the user's, named by its import path (docs/extending.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from dp_ray.config.data import DataConfig
from dp_ray.data.splits import Splits
from dp_ray.errors import ConfigError

FACT_FIELDS = ("num_examples", "num_classes", "image_size", "channels")
"""Fields of the data section that state a fact."""


@dataclass(frozen=True)
class DataFacts:
    """Public facts of a data set; images are [channels, image_size, image_size].

    The fields are part of a decoded copy's identity: another field gives all copies other names.
    """

    num_examples: int
    num_classes: int
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, [C, H, W]."""
        return self.channels, self.image_size, self.image_size


@dataclass(frozen=True)
class Unread:
    """Entries at the place of the data that a source does not read. Private, as the data is.

    Attributes:
        root: the folder that paths are shown relative to.
        skipped: (reason, path) of each entry among the examples that is no example, in order.
        beside: names of what lies beside the places that are read.
        read: the places that are read, in words: ``train/ and test/``.
    """

    root: Path = Path()
    skipped: list[tuple[str, str]] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    read: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Skipped entries by reason."""
        return dict(Counter(reason for reason, _ in self.skipped))


class Source(ABC):
    """A data set as the configuration names it; a subclass writes at least two methods.

    Instances are made often, also on machines without the data: the constructor reads nothing.

    Args:
        config: the data section.
    """

    self_contained: ClassVar[bool] = False
    """Whether the data comes with dp-ray or a library, so that no file of the user's is read."""

    decoding_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the data section that only some sources heed, and that decide this one's pixels.
    A run that differs in one of them is another run."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    @abstractmethod
    def facts(self) -> DataFacts:
        """Return the public facts; read no data.

        See :func:`known_facts` and :func:`given_facts`.

        Raises:
            ConfigError: the configuration lacks a fact that it must give, or contradicts one.
        """

    def stamp(self) -> str | None:
        """Return a text that differs whenever the images or labels may differ.

        It is compared before and after the data is read, so it looks anew at each call. See
        :func:`~dp_ray.data.stamp.stamp_of_files`.

        Returns:
            The text; None if only the content tells: then all of it is read at each start of a run.

        Raises:
            ConfigError: a field that says where the data lies cannot be used.
            DataError: the data cannot be looked at.
        """
        return None

    @abstractmethod
    def splits(self) -> Splits:
        """Open the training and the test split; images may be decoded only in ``pieces()``.

        Raises:
            ConfigError: the configuration contradicts the data.
            DataError: the data is missing or cannot be read.
        """

    def check_place(self) -> None:
        """Check that what the data is read from is there; open no file and import no user's code.

        It is called before anything that takes time, such as solving the budget.

        Raises:
            ConfigError: a field that says where the data lies cannot be used.
            DataError: the data is not there.
            MissingExtraError: a library that reads it is not installed.
        """
        return  # not abstract: a source may find out only when it is read

    def unread(self) -> Unread:
        """List what is not read; open no file.

        ``dp-ray data`` reports it before the data is opened. It agrees with ``skipped`` of the
        splits' notes.

        Raises:
            ConfigError, DataError: as :meth:`splits`.
        """
        return Unread()


def known_facts(config: DataConfig, known: DataFacts) -> DataFacts:
    """Return the facts of a data set that is the same for everybody.

    Args:
        config: may repeat the facts, and may give another mean and std.
        known: the facts; its mean and std are used where the configuration gives none.

    Raises:
        ConfigError: the configuration contradicts them.
    """
    for name in FACT_FIELDS:
        value = getattr(config, name)
        if value is not None and value != getattr(known, name):
            raise ConfigError(
                f"data.{name}", value, f"{config.name} has {getattr(known, name)}", "Leave it out"
            )
    return _normalized_as_given(config, known)


def given_facts(config: DataConfig) -> DataFacts:
    """Return the facts of private data: those that the configuration gives.

    Mean and std are 0.5 if the configuration gives none.

    Raises:
        ConfigError: one is missing.
    """
    values = {name: getattr(config, name) for name in FACT_FIELDS}
    for name, value in values.items():
        if value is None:
            raise ConfigError(
                f"data.{name}",
                None,
                f"must be given for data.name = {config.name}",
                "It is public: it goes into the privacy statement",
            )
    half = (0.5,) * values["channels"]
    return _normalized_as_given(config, DataFacts(**values, mean=half, std=half))


def _normalized_as_given(config: DataConfig, facts: DataFacts) -> DataFacts:
    """Replace mean and std by those of the configuration, where it gives them.

    Raises:
        ConfigError: it gives another number of them than of channels, or of names than of classes.
    """
    names = config.class_names
    if names is not None and len(names) != facts.num_classes:
        raise ConfigError(
            "data.class_names",
            names,
            f"{len(names)} names are given, and the data has {facts.num_classes} classes",
            "Name each class once, in the order of labels",
        )
    mean = tuple(config.mean or facts.mean)
    std = tuple(config.std or facts.std)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != facts.channels:
            raise ConfigError(
                f"data.{name}", list(values), f"{facts.channels} values are needed", "One a channel"
            )
    return replace(facts, mean=mean, std=std)
