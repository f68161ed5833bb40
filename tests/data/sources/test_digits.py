"""The digits of scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.data import pixel_rows

from dp_ray.config.data import DataConfig
from dp_ray.data.facts import data_facts
from dp_ray.data.store import open_dataset


def test_digits_are_split_into_disjoint_parts(tmp_path: Path) -> None:
    """No test image was trained on, pixel by pixel; together they are the 1797 of scikit-learn."""
    from sklearn.datasets import load_digits

    config = DataConfig(name="digits", expected_batch_size=64, cache=str(tmp_path / "cache"))
    data = open_dataset(config)
    assert data.train.images.shape == (1437, 1, 8, 8)
    assert data.test.images.shape == (360, 1, 8, 8)
    train, test = pixel_rows(data.train.images), pixel_rows(data.test.images)
    assert len(train) == 1437
    assert len(test) == 360
    assert not train & test
    source = load_digits()
    scaled = np.rint(source.images * 255 / 16).astype(np.uint8)
    assert train | test == pixel_rows(scaled)
    labels = {image.tobytes(): label for image, label in zip(scaled, source.target, strict=True)}
    for split in (data.train, data.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        found = [labels[image.tobytes()] for image in split.images]
        assert found == split.labels.tolist()
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert 0.09 < shares.min() < shares.max() < 0.11  # every class in both
    assert data.facts == data_facts(config)
