"""Public data sets as torchvision reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dp_ray.data.files import root_of
from dp_ray.data.source import DataFacts, Source, known_facts
from dp_ray.data.splits import ArraySplit, Notes, Splits
from dp_ray.data.stamp import stamp_of_files
from dp_ray.errors import DataError
from dp_ray.libraries import import_torchvision


class TorchvisionSet(Source):
    """A data set of ``torchvision.datasets``, below data.root as it was published."""

    _dataset: ClassVar[str]
    """Name of torchvision's class."""
    _folder: ClassVar[str]
    """Folder below data.root that holds the files."""
    _known: ClassVar[DataFacts]

    def facts(self) -> DataFacts:
        """See :class:`~dp_ray.data.source.Source`."""
        return known_facts(self.config, self._known)

    def check_place(self) -> None:
        """See :class:`~dp_ray.data.source.Source`."""
        self._root()

    def stamp(self) -> str:
        """See :class:`~dp_ray.data.source.Source`; download the files first if they may be."""
        root = self._root()
        if self.config.download and not (root / self._folder).exists():
            self.splits()
        return stamp_of_files(root, [self._folder])

    def splits(self) -> Splits:
        """See :class:`~dp_ray.data.source.Source`."""
        dataset = getattr(import_torchvision().datasets, self._dataset)
        config, folder = self.config, self._folder
        root = self._root()
        try:
            parts = [
                dataset(root, train=train, download=config.download) for train in (True, False)
            ]
            return _arrays(parts[0]), _arrays(parts[1])
        except Exception as error:  # torchvision asserts, and unpacks, what a file claims
            problem = f"{config.name} is not below it, or not whole"
            remedy = (
                f"Give the folder that holds {folder}/ as it was published, or set "
                "data.download=true"
            )
            raise DataError(
                f"data.root = {config.root!r}: {problem} ({type(error).__name__}: {error}). "
                f"{remedy}",
                shared=f"data.root: {problem}. {remedy}",
            ) from error

    def _root(self) -> Path:
        return root_of(self.config, holds=self._folder, may_download=True)


# Mean and std are the published constants of public data.


class Mnist(TorchvisionSet):
    """MNIST: handwritten digits, 28 × 28, grey."""

    _dataset = "MNIST"
    _folder = "MNIST"
    _known = DataFacts(60_000, 10, 28, 1, (0.1307,), (0.3081,))


class FashionMnist(TorchvisionSet):
    """Fashion-MNIST: articles of clothing, 28 × 28, grey."""

    _dataset = "FashionMNIST"
    _folder = "FashionMNIST"
    _known = DataFacts(60_000, 10, 28, 1, (0.2860,), (0.3530,))


class Cifar10(TorchvisionSet):
    """CIFAR-10: photographs, 32 × 32, RGB."""

    _dataset = "CIFAR10"
    _folder = "cifar-10-batches-py"
    _known = DataFacts(50_000, 10, 32, 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def _arrays(dataset: Any) -> ArraySplit:
    images = np.asarray(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    labels = np.asarray(dataset.targets, dtype=np.int64)
    if labels.shape != (len(images),):
        raise ValueError(f"{len(images)} images, and labels of shape {labels.shape}")
    return ArraySplit(images, labels, Notes(classes=list(dataset.classes)))
