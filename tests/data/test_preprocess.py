"""What a released network is given is what it was trained and evaluated on, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.support import MakeConfig
from PIL import Image

from dp_ray.config.data import AugmentConfig
from dp_ray.data.preprocess import Preprocess
from dp_ray.data.source import DataFacts
from dp_ray.data.store import open_dataset
from dp_ray.data.views import ViewMaker
from dp_ray.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 31, 4), dtype=np.uint8)
GREY = DataFacts(10, 2, 4, 1, (0.25,), (0.5,))
RGB = DataFacts(10, 2, 4, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def pictures() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    """Pictures whose decoding needs care, with options of how they are saved."""
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.arange(20 * 31, dtype=np.uint16).reshape(20, 31) * 100)
    return {
        "a_wide.png": (Image.fromarray(PIXELS[..., :3]), {}),
        "b_turned.jpg": (Image.fromarray(PIXELS[..., :3]), {"exif": turned}),
        "c_transparent.png": (Image.fromarray(PIXELS), {}),
        "d_deep.png": (deep, {}),
        "e_palette.gif": (Image.fromarray(PIXELS[..., :3]).convert("P"), {}),
        "f_key.png": (Image.fromarray(PIXELS[..., 0] // 64 * 64), {"transparency": 64}),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_files_and_pillow_images_become_what_was_trained_on(
    make_config: MakeConfig, tmp_path: Path, channels: int
) -> None:
    for split in ("train", "test"):
        for name in ("one", "two"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for file, (picture, options) in pictures().items():
                picture.save(tmp_path / "images" / split / name / file, **options)
    data = {
        **{"name": "image_folder", "root": str(tmp_path / "images"), "background": [9, 90, 200]},
        **{"num_examples": 12, "num_classes": 2, "image_size": 8, "channels": channels},
        "mean": [0.3] * channels,
    }
    config = make_config(data={**data, "expected_batch_size": 4}).data
    dataset = open_dataset(config)
    views = ViewMaker(AugmentConfig(views=3, shift=2), dataset.facts, torch.device("cpu"))
    trained = views.normalize(torch.from_numpy(np.array(dataset.test.images)))
    preprocess = Preprocess.of(config)
    paths = [tmp_path / "images/test/one" / name for name in pictures()]
    assert torch.equal(preprocess(paths), trained[:6])
    opened = []
    for path in paths:
        with Image.open(path) as image:
            opened.append(preprocess(image))
    assert torch.equal(torch.cat(opened), trained[:6])


@pytest.mark.parametrize("facts", [GREY, RGB])
def test_arrays_and_tensors_are_taken_as_pictures_are(facts: DataFacts) -> None:
    preprocess = Preprocess(facts)
    image = Image.fromarray(PIXELS[..., :3])
    expected = preprocess(image)
    assert expected.shape == (1, *facts.shape)
    channels_first = PIXELS[..., :3].transpose(2, 0, 1)
    assert torch.equal(preprocess(channels_first), expected)
    assert torch.equal(preprocess(torch.from_numpy(channels_first.copy())[None]), expected)
    grey = PIXELS[..., 0]
    assert torch.equal(preprocess(grey), preprocess(Image.fromarray(grey)))
    flipped = grey[:, ::-1]
    flipped.flags.writeable = False
    assert torch.equal(preprocess(flipped), preprocess(np.ascontiguousarray(flipped)))
    swapped = np.zeros(facts.shape, dtype=">f8") + 0.25
    assert torch.equal(preprocess(swapped), preprocess(torch.full(facts.shape, 0.25)))
    exact = torch.randint(0, 256, (2, *facts.shape), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (facts.mean, facts.std))
    assert torch.equal(preprocess(exact), (exact / 255 - mean) / std)
    assert torch.equal(preprocess(exact / 255), preprocess(exact))
    assert torch.equal(preprocess((exact / 255).double().numpy()[0]), preprocess(exact)[:1])
    assert torch.equal(preprocess([image, exact[0]]), torch.cat([expected, preprocess(exact[:1])]))


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"has 4 channels, before height and width"),
        (np.zeros((2, 4, 4), np.uint8), "has 2 channels"),
        (np.zeros((1, 4, 4), np.int64), "int64 of shape .* is no image"),
        (np.zeros((0, 3, 4, 4), np.uint8), "is no image"),
        (np.zeros((3, 4, 4), object), "object of shape .* is no image"),
        (np.zeros((3, 4, 4), np.complex64), "complex64 of shape .* is no image"),
        ([], "type list is no image"),
        (np.zeros((3, 5, 4)), r"fractions of shape \(3, 5, 4\) .* takes \[n, 3, 4, 4\]"),
        (np.full((3, 4, 4), 255.0), "values from 255 to 255 are no fractions"),
        (np.full((3, 4, 4), np.nan), "are no fractions"),
        (Image.new("F", (4, 4)), "no fixed range of brightness"),
        (7, "type int is no image"),
        ("nowhere.png", "nowhere.png is no readable image: No such file"),
        (__file__, "test_preprocess.py is no readable image"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        Preprocess(RGB)(image)
