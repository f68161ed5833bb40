"""How the images of each data set are read; decoded only when walked through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dp_ray.config import DataConfig
from dp_ray.data.catalog import DataFacts, data_facts
from dp_ray.errors import ConfigError, DataError
from dp_ray.imports import USER_ERRORS, cause_of, import_object
from dp_ray.storage import user_path

if TYPE_CHECKING:
    from PIL import Image


class Split(Protocol):
    """Images and labels that can be walked through once, in order, in pieces."""

    def __len__(self) -> int: ...

    def pieces(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Consecutive ([n, C, H, W] uint8, [n] int64) pairs."""
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split that is in memory already: images [N, C, H, W] uint8, labels [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def pieces(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """See :class:`Split`."""
        for start in range(0, len(self), 4096):
            part = slice(start, start + 4096)
            yield self.images[part], self.labels[part]


Splits = tuple[Split, Split]
"""Training and test split."""

FOLDERS = {
    "mnist": ["MNIST"],
    "fashion_mnist": ["FashionMNIST"],
    "cifar10": ["cifar-10-batches-py"],
    "image_folder": ["train", "test"],
}
"""Where below data.root the files lie."""


def load_splits(config: DataConfig) -> Splits:
    """Opens the configured data set; images may be decoded only when walked through.

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
        return _image_folder(config, facts)
    if ":" in config.name:
        return _own(config)
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

    def __len__(self) -> int:
        return self.num_examples

    def pieces(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """See :class:`Split`."""
        generator = np.random.default_rng(self.num_examples)
        shape = (self.facts.channels, self.facts.image_size, self.facts.image_size)
        for part in _parts(self.num_examples, shape):
            count = part.stop - part.start
            images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
            yield images, generator.integers(0, self.facts.num_classes, count)


def _parts(num_examples: int, shape: tuple[int, ...]) -> Iterator[slice]:
    """Consecutive examples, as many at a time as 64 MiB hold."""
    size = max(2**26 // math.prod(shape), 1)
    for start in range(0, num_examples, size):
        yield slice(start, min(start + size, num_examples))


def root_of(config: DataConfig) -> Path:
    """``data.root`` on this machine.

    Raises:
        ConfigError: it is not set, or not there.
    """
    if config.root is None:
        raise ConfigError(
            "data.root",
            None,
            f"{config.name} needs the folder that holds {FOLDERS[config.name][0]}/",
            "Set data.root to it",
        )
    root = user_path(config.root)
    if not root.is_dir() and not config.download:
        remedy = f"Give the folder that holds {FOLDERS[config.name][0]}/"
        if "$" in str(root):
            remedy = f"Set what is unset in the environment there, or give it in full. {remedy}"
        if config.name != "image_folder":
            remedy += ", or set data.download=true"
        problem = "no such folder" + ("" if str(root) == config.root else f" as {root}")
        raise ConfigError("data.root", config.root, problem, remedy)
    return root


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
    return ArraySplit(images, labels)


def _own(config: DataConfig) -> Splits:
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
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise DataError(
                f"data.name = {config.name!r}: {split} labels must be a row of whole numbers, not "
                f"{numbers.dtype} of shape {numbers.shape}"
            )
        pixels = _array(images, config, f"{split} images")
        if pixels.size and pixels.ndim != 4:
            raise DataError(
                f"data.name = {config.name!r}: {split} images must be one array of shape "
                f"[N, C, H, W], not of shape {pixels.shape}"
            )
        part = ArraySplit(pixels, numbers.astype(np.int64))
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


@dataclass(frozen=True)
class _FolderSplit:
    """Images below one folder a class, decoded, resized and cropped as they are walked through."""

    name: str
    samples: list[tuple[str, int]]
    channels: int
    image_size: int

    def __len__(self) -> int:
        return len(self.samples)

    def pieces(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        for part in _parts(len(self), (self.channels, self.image_size, self.image_size)):
            samples = self.samples[part]
            images = np.stack([self._decode(part.start + i) for i in range(len(samples))])
            yield images, np.array([label for _, label in samples], dtype=np.int64)

    def _decode(self, index: int) -> NDArray[np.uint8]:
        from PIL import Image, ImageOps

        path, _ = self.samples[index]
        try:
            with Image.open(path) as file:
                upright = ImageOps.exif_transpose(file)  # as viewers show it
                image = _eight_bit(upright).convert("L" if self.channels == 1 else "RGB")
        except Exception as error:  # Pillow raises a dozen kinds for broken files
            raise DataError(
                f"{path} is no readable image: {error}. Mend it, or take it away (then "
                "data.num_examples is another)",
                shared=f"data.root: image {index} of {self.name}/, counted from 0 in the order of "
                f"class folders and names, is no readable image ({type(error).__name__}). Mend it, "
                "or take it away (then data.num_examples is another)",
            ) from error
        # Shorter side to image_size, then the centre.
        square = ImageOps.fit(image, (self.image_size, self.image_size), Image.Resampling.BILINEAR)
        pixels = np.asarray(square, dtype=np.uint8)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, which Pillow's convert() would cut at 255.

    Palettes with transparency are resolved, at which Pillow warns otherwise; others as they are.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode} has no fixed range of brightness")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def _image_folder(config: DataConfig, facts: DataFacts) -> Splits:
    train, test = (_open_folder(config, split) for split in ("train", "test"))
    if train.classes != test.classes:
        differing = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise DataError(
            f"data.root = {config.root!r}: train/ and test/ have different class folders "
            f"({differing}), so equal labels would mean different classes",
            shared=f"data.root: train/ and test/ have different class folders ({differing}), so "
            "equal labels would mean different classes",
        )
    if len(train.classes) != facts.num_classes:
        raise ConfigError(
            "data.num_classes",
            facts.num_classes,
            f"train/ has {len(train.classes)} class folders",
            "Make them agree",
        )
    return (
        _FolderSplit("train", train.samples, facts.channels, facts.image_size),
        _FolderSplit("test", test.samples, facts.channels, facts.image_size),
    )


def _open_folder(config: DataConfig, split: str) -> Any:
    import torchvision

    try:
        return torchvision.datasets.ImageFolder(str(root_of(config) / split))
    except (FileNotFoundError, OSError) as error:
        raise DataError(
            f"data.root = {config.root!r}: expected {split}/<class>/<image> below it: {error}",
            shared=f"data.root: expected {split}/<class>/<image> below it",
        ) from error
