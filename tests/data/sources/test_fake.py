"""Made-up images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.data import pixel_rows

from dp_ray.config.data import DataConfig
from dp_ray.data.store import open_dataset


def test_digest_tells_training_sets_apart(tmp_path: Path) -> None:
    def digest(**given: Any) -> str:
        config = DataConfig(
            name="fake", expected_batch_size=2, image_size=4, cache=str(tmp_path), **given
        )
        return open_dataset(config).digest

    assert digest(num_examples=20) == digest(num_examples=20, num_classes=10)
    assert digest(num_examples=20) != digest(num_examples=21)


def test_fake_data_are_as_configured(tmp_path: Path) -> None:
    config = DataConfig(
        name="fake",
        expected_batch_size=2,
        num_examples=50,
        num_classes=3,
        image_size=5,
        channels=1,
        cache=str(tmp_path),
    )
    data = open_dataset(config)
    assert data.train.images.shape == (50, 1, 5, 5)
    assert len(data.test) == 10
    assert set(data.train.labels.tolist()) == {0, 1, 2}
    assert len(pixel_rows(data.train.images)) == 50
