"""How the images of each data set are read; decoded only when walked through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_ray.config.run import DataConfig
from dp_ray.data.facts import DataFacts, data_facts
from dp_ray.data.files import FOLDERS, root_of
from dp_ray.data.sources.image_folder import open_image_folder
from dp_ray.data.splits import ArraySplit, Notes, Piece, Splits, slices
from dp_ray.errors import ConfigError, DataError
from dp_ray.imports import USER_ERRORS, cause_of, import_object
from dp_ray.objectives.objective import LabelSpec


def load_splits(config: DataConfig, labels: LabelSpec | None = None) -> Splits:
    """Opens the configured data set; images may be decoded only when walked through.

    Args:
        config: which.
        labels: what the objective takes; None means class indices.

    Raises:
        DataError: the files are missing or unreadable.
    """
    facts = data_facts(config)
    if config.name == "digits":
        return _digits()
    if config.name == "fake":
        count = facts.num_examples
        return _FakeSplit(facts, count), _FakeSplit(facts, max(count // 5, 1))
    if config.name == "image_folder":
        return open_image_folder(config, facts)
    if ":" in config.name:
        return _own(config, labels or LabelSpec(0, facts.num_classes - 1))
    return _torchvision(config)


def _digits() -> Splits:
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


@dataclass(frozen=True)
class _FakeSplit:
    """Uniform noise, the same whenever it is walked through."""

    facts: DataFacts
    num_examples: int
    notes: Notes = field(default_factory=Notes)

    def __len__(self) -> int:
        return self.num_examples

    def pieces(self) -> Iterator[Piece]:
        """See :class:`Split`."""
        generator = np.random.default_rng(self.num_examples)
        shape = (self.facts.channels, self.facts.image_size, self.facts.image_size)
        for part in slices(self.num_examples, shape):
            count = part.stop - part.start
            images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
            yield images, generator.integers(0, self.facts.num_classes, count)


def _torchvision(config: DataConfig) -> Splits:
    import torchvision

    dataset: Callable[..., Any] = {
        "mnist": torchvision.datasets.MNIST,
        "fashion_mnist": torchvision.datasets.FashionMNIST,
        "cifar10": torchvision.datasets.CIFAR10,
    }[config.name]
    root = root_of(config)
    try:
        parts = [dataset(root, train=train, download=config.download) for train in (True, False)]
        return _arrays(parts[0]), _arrays(parts[1])
    except Exception as error:  # torchvision asserts, and unpacks, what a file claims
        [folder] = FOLDERS[config.name]
        raise DataError(
            f"data.root = {config.root!r}: {config.name} is not below it, or not whole "
            f"({type(error).__name__}: {error}). "
            f"Give the folder that holds {folder}/ as it was published, or set data.download=true",
            shared=f"data.root: {config.name} is not below it, or not whole. Give the folder that "
            f"holds {folder}/ as it was published, or set data.download=true",
        ) from error


def _arrays(dataset: Any) -> ArraySplit:
    images = np.asarray(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    labels = np.asarray(dataset.targets, dtype=np.int64)
    if labels.shape != (len(images),):
        raise ValueError(f"{len(images)} images, and labels of shape {labels.shape}")
    return ArraySplit(images, labels, Notes(classes=list(dataset.classes)))


def _own(config: DataConfig, spec: LabelSpec) -> Splits:
    load = import_object(config.name, "data.name")
    if not callable(load):
        raise ConfigError("data.name", config.name, "is no function", "Name one that loads data")
    try:
        splits = load(config)
    except (ConfigError, DataError):
        raise
    except USER_ERRORS as error:
        raise DataError(
            f"data.name = {config.name!r}: load(config) failed: {cause_of(error)}",
            shared=f"data.name = {config.name!r}: load(config) failed: {type(error).__name__}",
        ) from error
    try:
        (train_images, train_labels), (test_images, test_labels) = splits
    except (TypeError, ValueError):
        raise DataError(
            f"data.name = {config.name!r}: the loader must return "
            "((train_images, train_labels), (test_images, test_labels))"
        ) from None
    parts = []
    for split, images, labels in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        numbers = _array(labels, config, f"{split} labels")
        if not spec.takes(numbers):
            raise DataError(
                f"data.name = {config.name!r}: {split} labels must be {spec.in_words}, not "
                f"{numbers.dtype} of shape {numbers.shape}"
            )
        pixels = _array(images, config, f"{split} images")
        if pixels.size and pixels.ndim != 4:
            raise DataError(
                f"data.name = {config.name!r}: {split} images must be one array of shape "
                f"[N, C, H, W], not of shape {pixels.shape}"
            )
        part = ArraySplit(pixels, numbers.astype(spec.dtype))
        if len(part.images) != len(part.labels):
            raise DataError(
                f"data.name = {config.name!r}: {len(part.images)} {split} images and "
                f"{len(part.labels)} labels: give one label an image"
            )
        parts.append(part)
    return parts[0], parts[1]


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
