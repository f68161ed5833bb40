"""Sets that torchvision reads: files that are missing, and MNIST where it is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.data import refusal

from dp_ray.config.data import DataConfig
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError, DataError


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    """No root; a root that does not exist; a root without the files. None downloads anything."""
    cache, empty = str(tmp_path / "cache"), tmp_path / "empty"
    empty.mkdir()

    def config(root: Path | None) -> DataConfig:
        return DataConfig(
            name=name, expected_batch_size=2, cache=cache, root=None if root is None else str(root)
        )

    message = refusal(ConfigError, config(None))
    assert message.startswith("data.root = None: ")
    assert f"{name} needs the folder" in message
    message = refusal(ConfigError, config(tmp_path / "nowhere"))
    assert message.startswith("data.root = ")
    assert "no such folder" in message
    assert "data.download=true" in message
    message = refusal(DataError, config(empty))
    assert str(empty) in message
    assert "data.download=true" in message
    assert not list(empty.iterdir())


def test_mnist(real_data: Path, tmp_path: Path) -> None:
    config = DataConfig(
        name="mnist", root=str(real_data), expected_batch_size=2048, cache=str(tmp_path)
    )
    data = open_dataset(config)
    assert data.train.images.shape == (60_000, 1, 28, 28)
    assert data.test.images.shape == (10_000, 1, 28, 28)
    assert isinstance(data.train.images, np.memmap)
    # The published constants that the catalogue normalises by, and the published first labels.
    assert abs(float(data.train.images.mean()) / 255 - data.facts.mean[0]) < 1e-4
    assert abs(float(data.train.images.std()) / 255 - data.facts.std[0]) < 1e-4
    assert data.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert np.bincount(data.test.labels).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
