"""Decoded images in memory-mapped files: decoded once a node, shared by its workers.

The cache is as private as the data: see :mod:`dp_ray.data.cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from dp_ray.config.data import DataConfig
from dp_ray.data.cache import Cache, unwritable
from dp_ray.data.class_names import names_of_classes
from dp_ray.data.source import DataFacts, Source
from dp_ray.data.sources.registry import source_of
from dp_ray.data.splits import Notes, Piece, Split, Splits, added_up
from dp_ray.errors import ConfigError, DataError
from dp_ray.objectives.objective import LabelSpec


class Examples(Protocol):
    """What is trained on, by ids that count from 0."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> NDArray[Any]:
        """[n, …], as the objective's :class:`LabelSpec` says."""
        ...

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Copies of the images [n, C, H, W] and labels [n, …] with these ids [n]."""
        ...


@dataclass(frozen=True)
class StoredSplit:
    """Examples as memory maps: images [N, C, H, W] uint8, labels [N, …]."""

    images: NDArray[np.uint8]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """See :class:`Examples`."""
        return self.images[ids], self.labels[ids]


@dataclass(frozen=True)
class Dataset:
    """Both splits, their public facts, and a digest of each split (private).

    Attributes:
        notes: what was noticed of the training and of the test split as they were read (private).
        class_names: by label, public; empty where classes have no names.
    """

    train: Examples
    test: StoredSplit
    facts: DataFacts
    digest: str
    test_digest: str
    notes: tuple[Notes, Notes] = field(default_factory=lambda: (Notes(), Notes()))
    class_names: tuple[str, ...] = ()

    @property
    def skipped(self) -> dict[str, int]:
        """Files and folders below data.root that are no examples, by reason."""
        return added_up(notes.skipped for notes in self.notes)


def open_dataset(
    config: DataConfig, labels: LabelSpec | None = None, source: Source | None = None
) -> Dataset:
    """Opens the decoded copy, made first if it is not there yet.

    Args:
        config: the data section.
        labels: what the objective takes; None means class indices.
        source: the source of that section, where it was made already.

    Raises:
        ConfigError: the number of examples, or a label, is not what the configuration says.
        DataError: the data cannot be read, or the decoded copy cannot be written.
    """
    source = source or source_of(config)
    facts = source.facts()
    spec = labels or LabelSpec(0, facts.num_classes - 1)
    cache = Cache.open(config)
    stamp = source.stamp()
    splits = None
    if stamp is None:  # only the content tells whether it changed
        splits = _labelled(source, spec)
        stamp = _content_digest(splits)
    stored = [] if spec.is_class else [spec.dtype, spec.shape]
    name = cache.name_of([config.name, asdict(facts), stamp, *stored])
    folder = cache.path / name
    try:
        with cache.lock(name):
            if not folder.exists():
                _write(folder, splits or _labelled(source, spec), facts, spec)
                if splits is None and source_of(config).stamp() != stamp:
                    shutil.rmtree(folder)
                    raise DataError(
                        "the files of the data were changed while they were read. Start again "
                        "when nothing writes to them"
                    )
    except (OSError, ValueError, OverflowError) as error:  # no room, or for nothing so large
        raise unwritable(cache.path, error) from error
    dataset = _open(folder, facts, spec)
    names = names_of_classes(config, dataset.notes[0].classes, facts.num_classes)
    return replace(dataset, class_names=names)


@dataclass(frozen=True)
class _Labelled:
    """A split whose labels are what the objective takes, in the type that they are stored in."""

    split: Split
    name: str
    data: str
    spec: LabelSpec

    @property
    def notes(self) -> Notes:
        """See :class:`~dp_ray.data.splits.Split`."""
        return self.split.notes

    def __len__(self) -> int:
        return len(self.split)

    def pieces(self) -> Iterator[Piece]:
        """See :class:`~dp_ray.data.splits.Split`."""
        for images, labels in self.split.pieces():
            if not self.spec.takes(labels):
                raise DataError(
                    f"data.name = {self.data!r}: {self.name} labels must be {self.spec.in_words}, "
                    f"not {labels.dtype} of shape {labels.shape}"
                )
            yield images, labels.astype(self.spec.dtype, copy=False)


def _labelled(source: Source, spec: LabelSpec) -> Splits:
    train, test = source.splits()
    name = source.config.name
    return _Labelled(train, "train", name, spec), _Labelled(test, "test", name, spec)


def _open(folder: Path, facts: DataFacts, spec: LabelSpec) -> Dataset:
    try:
        train, test = (_load_split(folder, name) for name in ("train", "test"))
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        digest, test_digest = meta["train_digest"], meta["test_digest"]
        # Copies of arrays by an earlier version have no notes, nor anything to note.
        notes = Notes(**meta.get("train_notes", {})), Notes(**meta.get("test_notes", {}))
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"the decoded copy {folder} is damaged: {error}. Remove the folder: it is made anew",
            shared="the decoded copy of the data is damaged. Empty data.cache: it is made anew",
        ) from error
    dataset = Dataset(train, test, facts, digest, test_digest, notes)
    if len(train) != facts.num_examples:
        skipped = sum(dataset.notes[0].skipped.values())
        hint = f"; skipped in train/: {skipped} (see dp-ray data)" if skipped else ""
        raise ConfigError(
            "data.num_examples",
            facts.num_examples,
            f"the data has {len(train)} training examples{hint}",
            f"Set it to {len(train)} if that number may be public",
        )
    for split in (train, test):
        if not spec.contains(split.labels):
            problem = shared = "some labels are out of range"
            if spec.is_class:  # other numbers may be measurements of somebody
                problem = f"labels reach from {split.labels.min()} to {split.labels.max()}"
            raise ConfigError(
                "data.num_classes",
                facts.num_classes,
                problem,
                "Labels count from 0 to num_classes - 1"
                if spec.is_class
                else f"The objective takes labels from {spec.low:g} to {spec.high:g}",
                shared=shared,
            )
    return dataset


def _load_split(folder: Path, name: str) -> StoredSplit:
    images, labels = (
        np.load(folder / f"{name}_{part}.npy", mmap_mode="r", allow_pickle=False)
        for part in ("images", "labels")
    )
    return StoredSplit(images, labels)


def _write(folder: Path, splits: Splits, facts: DataFacts, spec: LabelSpec) -> None:
    """Writes beside ``folder`` and renames: it is whole or not there."""
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        meta: dict[str, Any] = {}
        for name, split in zip(("train", "test"), splits, strict=True):
            meta[f"{name}_digest"] = _write_split(temporary, name, split, facts, spec)
            meta[f"{name}_notes"] = split.notes.dump()
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(folder: Path, name: str, split: Split, facts: DataFacts, spec: LabelSpec) -> str:
    shape = facts.shape
    # A zero-length array cannot be mapped; np.save writes it as well as any other.
    images = (
        _new_map(folder / f"{name}_images.npy", (len(split), *shape))
        if len(split)
        else np.zeros((0, *shape), dtype=np.uint8)
    )
    labels = np.empty((len(split), *spec.shape), dtype=spec.dtype)
    digest = hashlib.sha256()
    done = 0
    for piece_images, piece_labels in split.pieces():
        if piece_images.shape[1:] != shape or piece_images.dtype != np.uint8:
            raise DataError(
                f"{name} images are {piece_images.dtype} {piece_images.shape[1:]}; data.channels "
                f"and data.image_size say uint8 {shape}"
            )
        part = slice(done, done + len(piece_labels))
        done = part.stop
        if done > len(split):
            break
        images[part], labels[part] = piece_images, piece_labels
        digest.update(np.ascontiguousarray(piece_images).tobytes() + piece_labels.tobytes())
    if done != len(split):  # some would be made up, or left out
        raise DataError(
            f"the pieces of the {name} split hold {done} examples, but its len() is "
            f"{len(split)}. Make them agree in the source"
        )
    if isinstance(images, np.memmap):
        images.flush()
    else:
        np.save(folder / f"{name}_images.npy", images)
    np.save(folder / f"{name}_labels.npy", labels)
    return digest.hexdigest()


def _new_map(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A mapped file with room on the disk: a write to one without it would kill the process."""
    images = open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _content_digest(splits: Splits) -> str:
    digest = hashlib.sha256()
    for data in _contents(splits):
        digest.update(data)
    return digest.hexdigest()


def _contents(splits: Splits) -> Iterator[bytes]:
    for split in splits:
        for images, labels in split.pieces():
            yield np.ascontiguousarray(images).tobytes()
            yield labels.tobytes()
