"""An image folder: which files are examples of which class, which are skipped, and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dp_ray.config.data import DataConfig
from dp_ray.data.class_names import match_classes, order_of, shown_name
from dp_ray.data.files import is_left_behind, root_of, walk
from dp_ray.data.pictures import SUFFIXES, Background, Picture, read_picture
from dp_ray.data.source import DataFacts, Source, Unread, given_facts
from dp_ray.data.splits import Notes, Piece, Splits, slices
from dp_ray.data.stamp import stamp_of_files
from dp_ray.errors import ConfigError, DataError

HIDDEN = "hidden or left by a system"
SUFFIX = "with a suffix that is not read"
OUTSIDE = "in no class folder"

_SPLITS = ("train", "test")
"""Folders below data.root."""


class ImageFolder(Source):
    """Images in ``train/<class>/`` and ``test/<class>/`` below data.root."""

    decoding_fields = frozenset({"background"})

    def facts(self) -> DataFacts:
        """See :class:`~dp_ray.data.source.Source`."""
        return given_facts(self.config)

    def check_place(self) -> None:
        """See :class:`~dp_ray.data.source.Source`."""
        _split_folders(self.config)

    def stamp(self) -> str:
        """See :class:`~dp_ray.data.source.Source`."""
        background = f"background {self.config.background}"
        return stamp_of_files(_root(self.config), _SPLITS, [background])

    def splits(self) -> Splits:
        """See :class:`~dp_ray.data.source.Source`."""
        return open_image_folder(self.config, self.facts())

    def unread(self) -> Unread:
        """See :class:`~dp_ray.data.source.Source`."""
        skipped = [entry for found in scan_splits(self.config) for entry in found.skipped]
        beside = _beside_splits(self.config)
        return Unread(_root(self.config), skipped, beside, "train/ and test/")


@dataclass(frozen=True)
class Scan:
    """What one split's folder holds.

    Attributes:
        folder: ``train`` or ``test`` below data.root.
        classes: path of each example, by the class folder's name; classes and paths in order.
        skipped: (reason, path) of each entry that is no example, in order.
    """

    folder: Path
    classes: dict[str, list[str]]
    skipped: list[tuple[str, str]]

    @property
    def counts(self) -> dict[str, int]:
        """Skipped entries by reason."""
        return dict(Counter(reason for reason, _ in self.skipped))


def scan(folder: Path) -> Scan:
    """List examples and skipped entries below a folder; opens no file.

    Names are ordered as their composed Unicode form (NFC), so that the order is the same whichever
    form a file system keeps.

    Args:
        folder: it must be there.

    Raises:
        DataError: see :func:`~dp_ray.data.files.walk`.
    """
    entries = list(walk(folder))
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    classes: dict[str, list[str]] = {
        name: [] for name in sorted(names, key=order_of) if not is_left_behind(name)
    }
    skipped = []
    for found in entries:
        inside = found.path.relative_to(folder).parts
        reason = None
        if found.status is None:
            reason = HIDDEN
        elif len(inside) == 1:
            reason = OUTSIDE
        elif found.path.suffix.lower() not in SUFFIXES:
            reason = SUFFIX
        if reason is None:
            classes.setdefault(inside[0], []).append(str(found.path))
        else:
            skipped.append((reason, str(found.path)))
    for paths in classes.values():
        paths.sort(key=lambda path: [order_of(part) for part in os.path.split(path)])
    return Scan(folder, classes, skipped)


@dataclass(frozen=True)
class FolderSplit:
    """Images below one folder a class, decoded, resized and cropped as they are walked through.

    Attributes:
        name: ``train`` or ``test``.
        samples: path and label of each example.
        channels, image_size, background: see :func:`~dp_ray.data.pictures.read_picture`.
        notes: see :class:`~dp_ray.data.splits.Split`.
    """

    name: str
    samples: list[tuple[str, int]]
    channels: int
    image_size: int
    background: Background = "white"
    notes: Notes = field(default_factory=Notes)

    def __len__(self) -> int:
        return len(self.samples)

    def pieces(self) -> Iterator[Piece]:
        """See :class:`~dp_ray.data.splits.Split`."""
        for part in slices(len(self), (self.channels, self.image_size, self.image_size)):
            samples = self.samples[part]
            images = np.stack([self.decode(part.start + i) for i in range(len(samples))])
            yield images, np.array([label for _, label in samples], dtype=np.int64)

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Read one image, [C, S, S], and note what it is.

        Raises:
            DataError: it cannot be read.
        """
        path, _ = self.samples[index]
        try:
            picture = read_picture(
                path,
                channels=self.channels,
                image_size=self.image_size,
                background=self.background,
            )
        except Exception as error:  # Pillow raises a dozen kinds for broken files
            remedy = "Repair it, or remove it (then data.num_examples is another)"
            raise DataError(
                f"{path} is no readable image: {error}. {remedy}",
                shared=f"data.root: image {index} of {self.name}/, counted from 0 in the order of "
                f"class folders and names, is no readable image ({type(error).__name__}). {remedy}",
            ) from error
        self._note(picture)
        return picture.pixels

    def _note(self, picture: Picture) -> None:
        notes, size = self.notes, list(picture.size)
        notes.kinds[picture.kind] = notes.kinds.get(picture.kind, 0) + 1
        notes.turned += picture.turned
        notes.transparent += picture.transparent
        notes.managed += picture.managed
        notes.smallest = list(map(min, notes.smallest or size, size))
        notes.largest = list(map(max, notes.largest or size, size))


def open_image_folder(config: DataConfig, facts: DataFacts) -> Splits:
    """Open both splits; no image is decoded yet.

    Raises:
        ConfigError: there is no such folder, or it has another number of classes.
        DataError: train/ or test/ lacks a class, or a class lacks images.
    """
    train, test = scan_splits(config)
    for found in (train, test):
        _check_classes(config, found)
    where = f"data.root = {config.root!r}"
    classes = match_classes(where, list(train.classes), list(test.classes))
    if len(classes) != facts.num_classes:
        others = sum(Path(path).parent == train.folder for _, path in train.skipped)
        hint = f"; skipped beside them: {others} (see dp-ray data)" if others else ""
        raise ConfigError(
            "data.num_classes",
            facts.num_classes,
            f"train/ has {len(classes)} class folders{hint}",
            "Make them agree",
        )
    return (
        _split(train, [ours for ours, _ in classes], config, facts),
        _split(test, [theirs for _, theirs in classes], config, facts),
    )


def scan_splits(config: DataConfig) -> tuple[Scan, Scan]:
    """List what train/ and test/ below data.root hold.

    Raises:
        ConfigError: data.root is not set, or not there.
        DataError: one of them is missing, or see :func:`scan`.
    """
    train, test = _split_folders(config)
    return scan(train), scan(test)


def _split_folders(config: DataConfig) -> list[Path]:
    root = _root(config)
    for name in _SPLITS:
        folder = root / name
        if not folder.is_dir():
            there: list[str] = []
            with suppress(OSError):
                there = sorted(path.name for path in root.iterdir() if path.is_dir())
            instead = f" (there: {', '.join(map(shown_name, there[:10]))})" if there else ""
            raise DataError(
                f"data.root = {config.root!r}: expected {name}/<class>/<image> below it{instead}",
                shared=f"data.root: expected {name}/<class>/<image> below it",
            )
    return [root / name for name in _SPLITS]


def _root(config: DataConfig) -> Path:
    return root_of(config, holds=_SPLITS[0])


def _beside_splits(config: DataConfig) -> list[str]:
    """Names of what lies in data.root beside train/ and test/, hidden entries left out."""
    names = (f"{path.name}/" if path.is_dir() else path.name for path in _root(config).iterdir())
    splits = {f"{name}/" for name in _SPLITS}
    return sorted(name for name in names if name not in splits and not is_left_behind(name))


def _check_classes(config: DataConfig, found: Scan) -> None:
    split = found.folder.name
    if not found.classes:
        problem = f"{split}/ holds no class folder: expected {split}/<class>/<image>"
        raise DataError(f"data.root = {config.root!r}: {problem}", shared=f"data.root: {problem}")
    for label, (name, paths) in enumerate(found.classes.items()):
        if not paths:
            path = found.folder / name
            skipped = sum(path in Path(other).parents for _, other in found.skipped)
            problem = f"holds no image that is read (other entries: {skipped})"
            raise DataError(
                f"{path} {problem}. Images have one of the suffixes {', '.join(sorted(SUFFIXES))}",
                shared=f"data.root: class folder {label} of {split}/, counted from 0, {problem}",
            )


def _split(found: Scan, classes: list[str], config: DataConfig, facts: DataFacts) -> FolderSplit:
    """A split whose labels count ``classes``, the names of its folders."""
    samples = [(path, label) for label, c in enumerate(classes) for path in found.classes[c]]
    notes = Notes(classes=classes, skipped=found.counts)
    return FolderSplit(
        found.folder.name, samples, facts.channels, facts.image_size, config.background, notes
    )
