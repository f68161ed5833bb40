"""Data that was passed as Python objects: what is taken as an image, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from dp_ray.config.data import DataConfig
from dp_ray.data.source import DataFacts, Source, given_facts
from dp_ray.data.splits import ArraySplit
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import DpRayError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
TEST = (IMAGES[:2], LABELS[:2])

Open = Callable[..., Dataset]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens what is passed as data, of grey 8×8 images unless facts say otherwise."""

    def open_it(data: Any, **facts: Any) -> Dataset:
        values = {"num_examples": 6, "num_classes": 3, "image_size": 8, "channels": 1} | facts
        section = DataConfig(expected_batch_size=2, cache=str(tmp_path / "cache"), **values)
        return open_dataset(section.passing(data))

    return open_it


class Items:
    """A map-style data set."""

    def __init__(self, images: Any, labels: Any = LABELS) -> None:
        self.images, self.labels = images, labels
        self.classes = ["ash", "elm", "oak"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


class Image_:  # noqa: N801 -- by its name alone it stands for Hugging Face's feature
    pass


class ClassLabel:
    names = ("ash", "elm", "oak")


Image_.__name__ = "Image"


class Table:
    """What a Hugging Face data set is seen as: rows by name, and features."""

    def __init__(self, **features: Any) -> None:
        self.features = features or {"id": object(), "scan": Image_(), "finding": ClassLabel()}

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = Image.fromarray(IMAGES[index, 0])
        return {"id": index, "scan": picture, "finding": int(LABELS[index])}


SHAPES: dict[str, Any] = {
    "arrays": (IMAGES, LABELS),
    "arrays without channels": (IMAGES[:, 0], LABELS),
    "tensors": (torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
    "tensor data set": TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
    "pictures": Items([Image.fromarray(image[0]) for image in IMAGES]),
    "colour pictures": Items([Image.fromarray(image[0]).convert("RGB") for image in IMAGES]),
    "rows last": Items(IMAGES.transpose(0, 2, 3, 1)),
    "without channels": Items(IMAGES[:, 0]),
    "to_tensor": Items(torch.from_numpy(IMAGES).float() / 255),
    "double": Items(IMAGES / 255),
    "table": Table(),
}


@pytest.mark.parametrize("train", SHAPES.values(), ids=list(SHAPES))
def test_images_of_all_shapes_are_the_same_data(opened: Open, train: Any) -> None:
    dataset, expected = opened((train, TEST)), opened((SHAPES["arrays"], TEST))
    images, labels = dataset.train.read(np.arange(6))
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert dataset.digest == expected.digest
    assert len(dataset.test) == 2


def test_names_of_classes_are_noted(opened: Open) -> None:
    for train in (Items(IMAGES), Table()):
        assert opened((train, None)).notes[0].classes == ["ash", "elm", "oak"]


def test_pictures_are_brought_to_size_as_in_an_image_folder(opened: Open) -> None:
    wide = [Image.new("RGBA", (20, 10), (255, 0, 0, 0)) for _ in range(6)]
    dataset = opened((Items(wide), None), channels=3, background=[0, 128, 255])
    images, _ = dataset.train.read(np.arange(6))
    assert images.shape == (6, 3, 8, 8)
    assert (images == np.array([0, 128, 255])[None, :, None, None]).all()
    assert len(dataset.test) == 0


class OwnSource(Source):
    def facts(self) -> DataFacts:
        return given_facts(self.config)

    def stamp(self) -> str:
        return "always the same"

    def splits(self) -> Any:
        return ArraySplit(self.images, LABELS), ArraySplit(*TEST)

    images = IMAGES


def test_a_source_is_known_by_its_content_whatever_its_stamp_says(opened: Open) -> None:
    section = DataConfig(
        expected_batch_size=2, num_examples=6, num_classes=3, image_size=8, channels=1
    )
    first, second = OwnSource(section), OwnSource(section)
    second.images = IMAGES[::-1]
    assert opened(first).digest == opened((SHAPES["arrays"], TEST)).digest
    assert opened(second).digest != opened(first).digest
    made = opened(OwnSource)
    assert made.digest == opened(first).digest


class Jittered(Items):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return RANDOM.integers(0, 256, (1, 8, 8), dtype=np.uint8), 0


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (Items(IMAGES), r"a pair \(train, test\), not Items; test may be None"),
        ((DataLoader(TensorDataset(torch.zeros(6, 1, 8, 8))), None), r"pass its \.dataset"),
        ((iter([]), None), "__len__ and __getitem__"),
        ((Items(IMAGES.repeat(2, axis=2)), None), r"train\[0\] .*shape \(1, 16, 8\).*\(1, 8, 8\)"),
        ((Items(IMAGES.astype(np.int64)), None), "int64: give uint8"),
        ((Items(IMAGES / 100 - 1), None), "whole 255ths.*data.mean and data.std"),
        ((Items([Image.new("I;16", (8, 8))] * 6), None), "more than 8 bits"),
        (([1, 2, 3], None), r"train\[0\] is no pair"),
        ((Items(IMAGES[:3]), None), "the data has 3 training examples"),
        ((Jittered(IMAGES), None), r"other items when it is read again.*set augment"),
        ((Table(a=object(), finding=ClassLabel()), None), "no image column.*a, finding"),
        (lambda _config: 1 / 0, r"load\(config\) failed: ZeroDivisionError"),
        (None, "Pass it again"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(opened: Open, data: Any, problem: str) -> None:
    with pytest.raises(DpRayError, match=problem) as caught:
        opened(data)
    assert "\n" not in str(caught.value)


def test_an_item_is_not_named_where_others_read_the_log(opened: Open) -> None:
    with pytest.raises(DpRayError) as caught:
        opened((Items(IMAGES.astype(np.int64)), None))
    assert "train[0]" in str(caught.value)
    assert "train[0]" not in caught.value.shared
